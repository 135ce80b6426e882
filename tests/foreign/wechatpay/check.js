'use strict';

// Requests to the platform of check.py with wechatpay-axios-plugin; prints what came back.
//
//     check.js PLATFORM DAEMON FOLDER MCHID

const assert = require('node:assert');
const { daemon, client } = require('./opcert-client');

const [platform, address, folder, mchid] = process.argv.slice(2);

(async () => {
  const ask = daemon(address, folder, mchid);
  const v3 = client(ask, mchid, { baseURL: platform, proxy: false });
  const order = { description: '中文 "quoted"', out_trade_no: 'node-1', amount: { total: 1 } };
  const { data: created } = await v3.post('/v3/pay/transactions/native', order);
  assert.equal(created.code_url, 'weixin://wxpay/bizpayurl?pr=node-1');
  const { data: found } = await v3.get('/v3/pay/transactions/out-trade-no/node-1', { params: { mchid } });
  assert.equal(found.trade_state, 'SUCCESS');
  // Answers with a probe's signature, or with a body that was changed, are refused.
  for (const name of ['PROBE', 'CHANGED']) {
    await assert.rejects(
      v3.get(`/v3/pay/transactions/out-trade-no/${name}`, { params: { mchid } }),
      /wechatpay-signature/,
    );
  }
  // What the client may not do, it may not do by the daemon either.
  await assert.rejects(
    ask('v2/sign', { fields: { a: '1' } }),
    /policy-refused/,
  );
  console.log('wechatpay-axios-plugin: ok');
})().catch((error) => { console.error(error); process.exitCode = 1; });
