<?php declare(strict_types=1);

// The same requests with wechatpay-php (`composer require wechatpay/wechatpay`).
//
//     shop.php PLATFORM DAEMON FOLDER MCHID

use WeChatPay\Builder;
use WeChatPay\ClientDecoratorInterface;

require_once __DIR__ . '/vendor/autoload.php';
require_once __DIR__ . '/Opcert.php';
require_once __DIR__ . '/requests.php';

[, $platform, $address, $folder, $merchant] = $argv;
$daemon = new Opcert($address, $folder, $merchant);
// The library asks for a key and certificates, and never uses what stands here.
$shop = Builder::factory([
    'mchid' => $merchant, 'serial' => 'on-token', 'privateKey' => 'on-token', 'certs' => ['daemon' => ''],
    'base_uri' => "$platform/",
]);
$daemon->plugInto($shop->getDriver()->select(ClientDecoratorInterface::JSON_BASED)->getConfig('handler'));
requests($daemon, $merchant, fn (string $method, string $path, array $options = [])
    => $shop->getDriver()->request($method, $path, $options));
echo "wechatpay-php: ok\n";
