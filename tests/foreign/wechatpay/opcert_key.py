"""wechatpayv3 with a key and secrets that stay on a token: plug_in(pay, daemon).

`pay` is a `wechatpayv3.WeChatPay` made without private key and APIv3 secret.
"""

import base64

import requests


class Daemon:
    """The native door of opcertd, as one merchant's server uses it."""

    def __init__(self, address, folder, merchant):
        """`folder` is what `opcert client add` wrote."""
        self.address, self.merchant = address, merchant
        self.session = requests.Session()
        self.session.trust_env = False
        self.session.cert = (f"{folder}/client.pem", f"{folder}/client-key.pem")
        self.session.verify = f"{folder}/server-ca.pem"

    def ask(self, path, **parts):
        answer = self.session.post(
            f"{self.address}/v1/wechatpay/{path}", json={"merchant": self.merchant, **parts}
        )
        if not answer.ok:
            problem = answer.json()
            raise PermissionError(f"{problem['detail']} [{problem['code']}]")
        return answer.json()


class Key:
    """Stands where the library expects an RSA private key.

    The library hands over a finished string. The daemon signs no such thing: it gets the parts
    and builds the string itself, so a string with anything else in it has no valid signature.
    """

    def __init__(self, daemon):
        self.daemon = daemon

    def sign(self, data, padding=None, algorithm=None):
        first, *rest = data.split(b"\n", 4)
        if first.startswith((b"wx", b"ww")):
            return self._start(first.decode(), *(part.decode() for part in rest[:3]))
        target, timestamp, nonce, body = rest
        signed = self.daemon.ask(
            "v3/authorization",
            method=first.decode(),
            target=target.decode(),
            timestamp=int(timestamp),
            nonce=nonce.decode(),
            body_base64=base64.b64encode(body[:-1]).decode(),
        )
        return base64.b64decode(signed["signature"])

    def _start(self, appid, timestamp, nonce, package):
        in_page = package.startswith("prepay_id=")
        signed = self.daemon.ask(
            "v3/paysign",
            client="jsapi" if in_page else "app",
            appid=appid,
            prepay_id=package.removeprefix("prepay_id="),
            timestamp=int(timestamp),
            nonce=nonce,
        )
        return base64.b64decode(signed["parameters"]["paySign" if in_page else "sign"])

    def decrypt(self, ciphertext, padding=None):
        fields = [base64.b64encode(ciphertext).decode()]
        return self.daemon.ask("v3/fields/decrypt", fields=fields)["fields"][0].encode()


def plug_in(pay, daemon):
    """Gives `pay` the key, and has the daemon verify and open what the platform sends."""
    core = pay._core

    def verify(headers, body):
        try:
            daemon.ask("v3/verify", headers=dict(headers), body=body)
        except PermissionError:
            return False
        return True

    def open_callback(headers, body):
        text = body.decode() if isinstance(body, bytes) else body
        return daemon.ask("v3/decrypt", headers=dict(headers), body=text)["resource"]

    core._private_key = Key(daemon)
    core._verify_signature = verify
    core.decrypt_callback = open_callback
    core.encrypt = lambda text: daemon.ask("v3/fields/encrypt", fields=[text])["fields"][0]
    return pay
