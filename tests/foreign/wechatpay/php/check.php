<?php declare(strict_types=1);

// Requests to the platform of check.py with the HTTP client that wechatpay-php is made of.
//
//     check.php PLATFORM DAEMON FOLDER MCHID

use GuzzleHttp\Client;
use GuzzleHttp\HandlerStack;

require_once 'GuzzleHttp/autoload.php';
require_once __DIR__ . '/Opcert.php';
require_once __DIR__ . '/requests.php';

[, $platform, $address, $folder, $merchant] = $argv;
$daemon = new Opcert($address, $folder, $merchant);
$client = new Client([
    'base_uri' => "$platform/",
    'headers' => ['Accept' => 'application/json'],
    'handler' => $daemon->plugInto(HandlerStack::create()),
]);
requests($daemon, $merchant, fn (string $method, string $path, array $options = [])
    => $client->request($method, $path, $options));
echo "php: ok\n";
