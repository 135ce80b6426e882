"""A platform to test merchants' libraries against: HTTPS, with keys and certificates of its own.

It checks every `Authorization` header against the merchant's certificate, and signs its answers
with its public-key identity where the request names it, else with its platform certificate.
"""

import base64
import datetime
import http.server
import ipaddress
import json
import re
import secrets
import ssl
import threading
import time

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.x509.oid import NameOID

PUBLIC_KEY_ID = "PUB_KEY_ID_0119000072912024101500351800000111"
NOW = datetime.datetime.now(datetime.timezone.utc)
DAY = datetime.timedelta(days=1)


def serial_of(certificate):
    """Upper-case hexadecimal of the bytes, leading zeros kept."""
    return certificate.serial_number.to_bytes(20).hex().upper()


def pem(thing):
    if isinstance(thing, x509.Certificate):
        return thing.public_bytes(serialization.Encoding.PEM)
    if isinstance(thing, rsa.RSAPublicKey):
        return thing.public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    return thing.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


class Platform:
    def __init__(self, merchant, apiv3_secret):
        self.merchant, self.secret = merchant, apiv3_secret.encode()
        new_key = lambda: rsa.generate_private_key(65537, 2048)
        self.authority_key, self.key, self.public_mode_key = new_key(), new_key(), new_key()
        self.authority = self._certificate("Test Root CA", self.authority_key.public_key(), ca=True)
        self.certificate = self._certificate("Test platform sign", self.key.public_key())
        self.merchant_certificate = None
        self.requests = []
        self._serve(new_key())

    def _certificate(self, name, key, ca=False, serial=None, names=None):
        naming = lambda text: x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])
        builder = (
            x509.CertificateBuilder()
            .subject_name(naming(name))
            .issuer_name(naming("Test Root CA"))
            .public_key(key)
            .serial_number(serial or int.from_bytes(b"\x71" + secrets.token_bytes(19)))
            .not_valid_before(NOW - DAY)
            .not_valid_after(NOW + 365 * DAY)
            .add_extension(x509.BasicConstraints(ca, None), critical=True)
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(self.authority_key, hashes.SHA256())

    def certify(self, request_pem):
        """The API certificate for a merchant's request; its serial begins with a zero."""
        request = x509.load_pem_x509_csr(request_pem)
        assert request.is_signature_valid
        serial = int.from_bytes(b"\x0c" + secrets.token_bytes(19))
        self.merchant_certificate = self._certificate(
            self.merchant, request.public_key(), serial=serial
        )
        return pem(self.merchant_certificate)

    def encrypt_for_merchant(self, text):
        oaep = padding.OAEP(padding.MGF1(hashes.SHA1()), hashes.SHA1(), None)
        key = self.merchant_certificate.public_key()
        return base64.b64encode(key.encrypt(text.encode(), oaep)).decode()

    def decrypt(self, text):
        oaep = padding.OAEP(padding.MGF1(hashes.SHA1()), hashes.SHA1(), None)
        return self.public_mode_key.decrypt(base64.b64decode(text), oaep).decode()

    def seal(self, plaintext, associated="transaction"):
        nonce = secrets.token_hex(6)
        sealed = AESGCM(self.secret).encrypt(nonce.encode(), plaintext, associated.encode())
        return {
            "algorithm": "AEAD_AES_256_GCM",
            "ciphertext": base64.b64encode(sealed).decode(),
            "nonce": nonce,
            "associated_data": associated,
            "original_type": "transaction",
        }

    def headers(self, body, public_mode=True):
        """The five headers that sign `body`."""
        timestamp, nonce = str(int(time.time())), secrets.token_hex(16)
        key = self.public_mode_key if public_mode else self.key
        message = f"{timestamp}\n{nonce}\n".encode() + body + b"\n"
        signature = key.sign(message, padding.PKCS1v15(), hashes.SHA256())
        return {
            "Wechatpay-Timestamp": timestamp,
            "Wechatpay-Nonce": nonce,
            "Wechatpay-Serial": PUBLIC_KEY_ID if public_mode else serial_of(self.certificate),
            "Wechatpay-Signature-Type": "WECHATPAY2-SHA256-RSA2048",
            "Wechatpay-Signature": base64.b64encode(signature).decode(),
        }

    def callback(self, identity, content):
        """Headers and body of a notification."""
        body = json.dumps(
            {
                "id": identity,
                "resource_type": "encrypt-resource",
                "event_type": "TRANSACTION.SUCCESS",
                "resource": self.seal(json.dumps(content).encode()),
            }
        ).encode()
        return self.headers(body), body

    def authorised(self, method, target, header, body):
        """Why a request is refused; None if it is the merchant's."""
        scheme, _, rest = (header or "").partition(" ")
        if scheme != "WECHATPAY2-SHA256-RSA2048":
            return "认证类型不正确"
        if not re.fullmatch(r'([a-z_]+="[^"]*",){4}[a-z_]+="[^"]*"', rest):
            return "Authorization值格式错误"
        parts = dict(re.findall(r'([a-z_]+)="([^"]*)"', rest))
        if abs(time.time() - int(parts["timestamp"])) > 300:
            return "timestamp与发起请求的时间不得超过5分钟"
        if parts["mchid"] != self.merchant or parts["serial_no"] != serial_of(
            self.merchant_certificate
        ):
            return "商户证书序列号有误"
        head = f"{method}\n{target}\n{parts['timestamp']}\n{parts['nonce_str']}\n"
        try:
            self.merchant_certificate.public_key().verify(
                base64.b64decode(parts["signature"]),
                head.encode() + body + b"\n",
                padding.PKCS1v15(),
                hashes.SHA256(),
            )
        except InvalidSignature:
            return "签名错误"
        return None

    def answer(self, method, target, body):
        """What a good request gets."""
        path = target.split("?")[0]
        if path == "/v3/certificates":
            entry = {
                "serial_no": serial_of(self.certificate),
                "effective_time": (NOW - DAY).isoformat(timespec="seconds"),
                "expire_time": (NOW + 365 * DAY).isoformat(timespec="seconds"),
                "encrypt_certificate": self.seal(pem(self.certificate), "certificate"),
            }
            return {"data": [entry]}
        if (method, path) == ("POST", "/v3/pay/transactions/native"):
            name = json.loads(body)["out_trade_no"]
            return {"code_url": f"weixin://wxpay/bizpayurl?pr={name}"}
        if (method, path) == ("POST", "/v3/fields"):
            name = self.decrypt(json.loads(body)["name"])
            return {"name": self.encrypt_for_merchant(name)}
        if path.startswith("/v3/callback/"):
            identity = path.removeprefix("/v3/callback/")
            headers, body = self.callback(identity, {"amount": 1})
            return {"headers": headers, "body": body.decode()}
        name = path.removeprefix("/v3/pay/transactions/out-trade-no/")
        return {"out_trade_no": name, "trade_state": "SUCCESS", "名": "中文"}

    def _serve(self, tls_key):
        platform = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def handle_request(self):
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                why = platform.authorised(
                    self.command, self.path, self.headers.get("Authorization"), body
                )
                if not (self.headers.get("Accept") and self.headers.get("User-Agent")):
                    why = "Http头缺少Accept或User-Agent"
                if self.path == "/v3/fields" and self.headers["Wechatpay-Serial"] != PUBLIC_KEY_ID:
                    why = "平台证书序列号Wechatpay-Serial错误"
                platform.requests.append((self.command, self.path, why))
                if why:
                    self.send(401, {"code": "SIGN_ERROR", "message": why}, None)
                    return
                public_mode = self.path.split("?")[0] != "/v3/certificates"
                self.send(200, platform.answer(self.command, self.path, body), public_mode)

            def send(self, status, content, public_mode):
                body = json.dumps(content, ensure_ascii=False).encode()
                signed = {} if public_mode is None else platform.headers(body, public_mode)
                if "/PROBE" in self.path:
                    probe = "WECHATPAY/SIGNTEST/" + signed["Wechatpay-Signature"][19:]
                    signed["Wechatpay-Signature"] = probe
                if "/CHANGED" in self.path:
                    body = body.replace(b"SUCCESS", b"REFUND!")
                self.send_response(status)
                for name, value in signed.items():
                    self.send_header(name, value)
                self.send_header("Content-Type", "application/json; charset=utf-8")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST = handle_request

        names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        certificate = self._certificate("localhost", tls_key.public_key(), names=names)
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.tls = pem(certificate) + pem(tls_key)
        self.address = f"https://localhost:{self.server.server_port}"

    def start(self, folder):
        """Serves from now on; leaves its authority's certificate in `folder`/platform-ca.pem."""
        (folder / "platform-tls.pem").write_bytes(self.tls)
        (folder / "platform-ca.pem").write_bytes(pem(self.authority))
        (folder / "pub_key.pem").write_bytes(pem(self.public_mode_key.public_key()))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "platform-tls.pem")
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
