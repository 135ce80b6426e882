<?php declare(strict_types=1);

use Psr\Http\Message\ResponseInterface;

/** Orders, queries, a field and a callback; `$call` sends a request through a plugged-in client. */
function requests(Opcert $daemon, string $merchant, callable $call): void
{
    $read = fn (ResponseInterface $response): array
        => json_decode((string) $response->getBody(), true, 16, JSON_THROW_ON_ERROR);
    $order = ['description' => '中文 "quoted"', 'out_trade_no' => 'php-1', 'amount' => ['total' => 1]];
    $created = $read($call('POST', 'v3/pay/transactions/native', ['json' => $order]));
    expect($created['code_url'] === 'weixin://wxpay/bizpayurl?pr=php-1', $created);
    $query = ['query' => ['mchid' => $merchant]];
    $found = $read($call('GET', 'v3/pay/transactions/out-trade-no/php-1', $query));
    expect($found['trade_state'] === 'SUCCESS', $found);
    // Answers with a probe's signature, or with a body that was changed, are refused.
    foreach (['PROBE', 'CHANGED'] as $name) {
        refused(fn () => $call('GET', "v3/pay/transactions/out-trade-no/$name", $query), 'wechatpay-signature');
    }

    // A field goes to the platform, which sends it back encrypted for the merchant.
    ['serial' => $serial, 'fields' => [$field]] = $daemon->encrypt('王小明');
    $person = ['json' => ['name' => $field], 'headers' => ['Wechatpay-Serial' => $serial]];
    $echoed = $read($call('POST', 'v3/fields', $person));
    expect($daemon->decrypt($echoed['name']) === ['王小明'], $echoed);

    // A callback opens once; delivered anew, it is told to be the same event.
    foreach ([false, true] as $again) {
        $sent = $read($call('GET', 'v3/callback/EV-' . getmypid()));
        $opened = $daemon->open($sent['headers'], $sent['body']);
        expect($opened['resource'] === '{"amount": 1}', $opened);
        expect(isset($opened['first_delivered_at']) === $again, $opened);
        refused(fn () => $daemon->open($sent['headers'], $sent['body']), 'wechatpay-replayed');
    }
}

function expect(bool $holds, $found): void
{
    if (!$holds) {
        throw new LogicException('unexpected: ' . json_encode($found, JSON_UNESCAPED_UNICODE));
    }
}

function refused(callable $call, string $code): void
{
    try {
        $call();
    } catch (Throwable $error) {
        expect(str_contains($error->getMessage(), "[$code]"), $error->getMessage());
        return;
    }
    throw new LogicException("not refused with $code");
}
