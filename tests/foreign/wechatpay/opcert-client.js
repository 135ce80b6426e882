'use strict';

// wechatpay-axios-plugin with a key and secrets that stay on a token.

const fs = require('node:fs');
const https = require('node:https');
const { default: axios } = require('axios');
const { Decorator } = require('wechatpay-axios-plugin');

/** The native door of opcertd; `folder` is what `opcert client add` wrote. */
function daemon(address, folder, merchant) {
  const read = (name) => fs.readFileSync(`${folder}/${name}`);
  const door = axios.create({
    baseURL: `${address}/v1/wechatpay/`,
    proxy: false,
    httpsAgent: new https.Agent({
      cert: read('client.pem'), key: read('client-key.pem'), ca: read('server-ca.pem'), keepAlive: true,
    }),
  });
  return async (path, parts) => {
    const { status, data } = await door.post(path, { merchant, ...parts }, { validateStatus: null });
    if (status !== 200) throw new Error(`${data.detail} [${data.code}]`);
    return data;
  };
}

/** A client of the platform for which `ask`, a `daemon`, signs and verifies. */
function client(ask, mchid, options = {}) {
  class OnToken extends Decorator {
    // The parts of the request go to the daemon, which builds the string to sign.
    static requestInterceptor() {
      return async (config) => {
        const url = new URL(axios.getUri(config), config.baseURL);
        const body = config.data === undefined ? '' : JSON.stringify(config.data);
        if (body) config.data = body;
        const { authorization } = await ask('v3/authorization', {
          method: config.method.toUpperCase(), target: url.pathname + url.search, body,
        });
        config.headers.set('Authorization', authorization);
        return config;
      };
    }

    // Keeps the body as it came; what follows may parse it.
    static responseVerifier() {
      return function keep(data) { this.received = data; return data; };
    }
  }
  const { v3 } = new OnToken({ mchid, serial: 'on-token', privateKey: '', certs: { daemon: '' }, ...options });
  v3.interceptors.response.use(async (response) => {
    await ask('v3/verify', { headers: { ...response.headers }, body: response.config.received });
    return response;
  });
  return v3;
}

module.exports = { daemon, client };
