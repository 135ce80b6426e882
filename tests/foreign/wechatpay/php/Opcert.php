<?php declare(strict_types=1);

use GuzzleHttp\Client;
use GuzzleHttp\HandlerStack;
use GuzzleHttp\Middleware;
use GuzzleHttp\Promise\PromiseInterface;
use Psr\Http\Message\MessageInterface;
use Psr\Http\Message\RequestInterface;
use Psr\Http\Message\ResponseInterface;

/** What the daemon does not do; the code stands in brackets. */
final class Refused extends RuntimeException
{
}

/** The native door of opcertd, as one merchant's server uses it. */
final class Opcert
{
    private Client $door;
    private string $merchant;

    /** `$folder` is what `opcert client add` wrote. */
    public function __construct(string $address, string $folder, string $merchant)
    {
        $this->merchant = $merchant;
        $this->door = new Client([
            'base_uri' => "$address/v1/wechatpay/",
            'cert' => "$folder/client.pem",
            'ssl_key' => "$folder/client-key.pem",
            'verify' => "$folder/server-ca.pem",
            'http_errors' => false,
            'timeout' => 30,
        ]);
    }

    /** @return array<string, mixed> */
    public function ask(string $path, array $parts): array
    {
        $answer = $this->door->post($path, ['json' => ['merchant' => $this->merchant] + $parts]);
        $content = json_decode((string) $answer->getBody(), true, 16, JSON_THROW_ON_ERROR);
        if ($answer->getStatusCode() !== 200) {
            throw new Refused("{$content['detail']} [{$content['code']}]");
        }
        return $content;
    }

    /** Gives a stack the two middlewares, in place of those that hold a key and certificates. */
    public function plugInto(HandlerStack $stack): HandlerStack
    {
        $stack->remove('signer');
        $stack->remove('verifier');
        $stack->before('prepare_body', Middleware::mapRequest([$this, 'sign']), 'signer');
        $stack->before('http_errors', [$this, 'verifier'], 'verifier');
        return $stack;
    }

    /** The parts of the request go to the daemon, which builds the string to sign. */
    public function sign(RequestInterface $request): RequestInterface
    {
        $signed = $this->ask('v3/authorization', [
            'method' => $request->getMethod(),
            'target' => $request->getRequestTarget(),
            'body_base64' => base64_encode(self::body($request)),
        ]);
        return $request->withHeader('Authorization', $signed['authorization']);
    }

    public function verifier(callable $next): callable
    {
        return fn (RequestInterface $request, array $options): PromiseInterface
            => $next($request, $options)->then(function (ResponseInterface $response): ResponseInterface {
                $this->ask('v3/verify', self::received($response->getHeaders(), self::body($response)));
                return $response;
            });
    }

    /** Encrypts fields; `serial` is to be sent as `Wechatpay-Serial`. */
    public function encrypt(string ...$fields): array
    {
        return $this->ask('v3/fields/encrypt', ['fields' => $fields]);
    }

    /** Decrypts fields, on the token. */
    public function decrypt(string ...$fields): array
    {
        return $this->ask('v3/fields/decrypt', ['fields' => $fields])['fields'];
    }

    /** Verifies a callback and opens it. `$headers`: each name with one value or a list of one. */
    public function open(array $headers, string $body): array
    {
        return $this->ask('v3/decrypt', self::received($headers, $body));
    }

    private static function received(array $headers, string $body): array
    {
        $one = fn ($values): string => implode(', ', (array) $values);
        return ['headers' => array_map($one, $headers), 'body_base64' => base64_encode($body)];
    }

    private static function body(MessageInterface $message): string
    {
        $text = (string) $message->getBody();
        $message->getBody()->rewind();
        return $text;
    }
}
