"""Merchants' servers in five languages, against a platform, with the real daemon and token.

    check.py BINARIES NODE_MODULES [LIBRARIES]

BINARIES holds opcertd, opcert and opcert-worker; NODE_MODULES is where npm put the Node library.
Python and Node run with the libraries that merchants use. Go, Java and PHP run what these examples
plug into the official libraries; the libraries themselves too where LIBRARIES has them, as their
registries' clients put them there: `go` (the vendor folder of go mod vendor in go/shop), `java` (the
jars of mvn dependency:copy-dependencies), `php` (the vendor folder of composer install).

A SoftHSM2 token is made in a temporary directory; nothing outside of it is touched.
"""

import json
import os
import pathlib
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from opcert_key import Daemon, plug_in  # noqa: E402
from platform_server import PUBLIC_KEY_ID, Platform, serial_of  # noqa: E402
from wechatpayv3 import SignType, WeChatPay, WeChatPayType  # noqa: E402

BINARIES = pathlib.Path(sys.argv[1]).resolve()
NODE_MODULES = pathlib.Path(sys.argv[2]).resolve()
LIBRARIES = pathlib.Path(sys.argv[3]).resolve() if sys.argv[3:] else None
GSON = "/usr/share/java/gson.jar"
MCHID, APPID = "1900007291", "wx8888888888888888"
APIV3, API = secrets.token_hex(16), secrets.token_hex(16)
MODULES = [
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib64/softhsm/libsofthsm2.so",
    "/usr/lib64/pkcs11/libsofthsm2.so",
]


def run(*command, stdin="", **options):
    result = subprocess.run(
        [str(part) for part in command], input=stdin, capture_output=True, text=True, **options
    )
    assert result.returncode == 0, f"{command}: {result.stdout}{result.stderr}"
    return result.stdout


def token(folder):
    """A fresh token and the configuration of a daemon on it."""
    (folder / "tokens").mkdir()
    conf = folder / "softhsm2.conf"
    conf.write_text(f"directories.tokendir = {folder}/tokens\nlog.level = ERROR\n")
    pin = secrets.token_hex(4)
    run(
        *("softhsm2-util", "--init-token", "--free", "--label", "shop"),
        *("--pin", pin, "--so-pin", secrets.token_hex(4)),
        env={**os.environ, "SOFTHSM2_CONF": str(conf)},
    )
    private(folder / "pin", pin)
    module = next(path for path in MODULES if os.path.exists(path))
    config = folder / "opcertd.toml"
    private(
        config,
        f"""state-directory = "{folder}/state"
runtime-directory = "{folder}/run"
worker = "{BINARIES}/opcert-worker"
[[module]]
name = "softhsm"
path = "{module}"
environment = {{ SOFTHSM2_CONF = "{conf}" }}
[[module.token]]
uri = "pkcs11:token=shop"
pin-source = "file:{folder}/pin"
[native]
addresses = ["127.0.0.1:0"]
""",
    )
    return config


def private(path, text):
    path.touch(mode=0o600)
    path.write_text(text)


def wait_for(path, process):
    deadline = time.monotonic() + 60
    while True:
        with socket.socket(socket.AF_UNIX) as door:
            if door.connect_ex(str(path)) == 0:
                return
        assert process.poll() is None and time.monotonic() < deadline, "opcertd does not start"
        # The daemon offers no event to a process that is not its service manager.
        time.sleep(0.01)


def set_up(folder, platform, opcert):
    """What a person does once for a merchant."""
    ca, csr, certificate = (folder / name for name in ("platform-ca.pem", "api.csr", "api.pem"))
    opcert("wechatpay", "merchant", "add", MCHID, "--csr", csr, "--platform-ca", ca)
    certificate.write_bytes(platform.certify(csr.read_bytes()))
    opcert("wechatpay", "merchant", "certificate", MCHID, certificate)
    for kind, secret in (("apiv3", APIV3), ("api", API)):
        opcert("wechatpay", "secret", "set", MCHID, kind, "--secret-file", "-", stdin=secret)
    # The command line fetches, the daemon decrypts, verifies and keeps.
    fetch = ("wechatpay", "platform", "fetch", MCHID, "--api", platform.address, "--api-ca", ca)
    assert serial_of(platform.certificate) in opcert(*fetch)
    opcert(*fetch)
    key = folder / "pub_key.pem"
    opcert("wechatpay", "platform", "pin", MCHID, key, "--id", PUBLIC_KEY_ID)
    uses = "request,start,decrypt,check,notification"
    client = folder / "server"
    opcert("client", "add", "server", "--wechatpay", f"{MCHID}={uses}", "--out", client)
    return client


def check_python(platform, daemon):
    pay = WeChatPay(
        wechatpay_type=WeChatPayType.NATIVE,
        mchid=MCHID,
        private_key=None,
        cert_serial_no=serial_of(platform.merchant_certificate),
        appid=APPID,
        apiv3_key=None,
        notify_url="https://shop.example/notify",
        public_key=(platform.folder / "pub_key.pem").read_text(),
        public_key_id=PUBLIC_KEY_ID,
    )
    plug_in(pay, daemon)
    pay._core._gate_way = platform.address

    code, message = pay.pay(description="中文", out_trade_no="python-1", amount={"total": 1})
    assert (code, json.loads(message)["code_url"][-8:]) == (200, "python-1"), message
    code, message = pay.query(out_trade_no="python-1")
    assert (code, json.loads(message)["trade_state"]) == (200, "SUCCESS"), message
    for name in ("PROBE", "CHANGED"):
        try:
            pay.query(out_trade_no=name)
        except Exception as error:
            assert "failed to verify" in str(error), error
        else:
            raise AssertionError(f"{name} was believed")

    # Starting a payment, with the timestamp and nonce that the page gets.
    nonce, now = secrets.token_hex(16).upper(), str(int(time.time()))
    for package in ("prepay_id=wx2611", "wx2611"):
        signature = pay.sign([APPID, now, nonce, package], SignType.RSA_SHA256)
        message = f"{APPID}\n{now}\n{nonce}\n{package}\n".encode()
        verify(platform, signature, message)

    headers, body = platform.callback("EV-1", {"amount": 1})
    assert pay.callback(headers, body)["resource"] == {"amount": 1}
    refused(lambda: pay.callback(headers, body), "wechatpay-replayed")
    assert pay.callback(*platform.callback("EV-1", {"amount": 1}))["resource"] == {"amount": 1}
    headers, body = platform.callback("EV-2", {"amount": 1})
    refused(lambda: pay.callback(headers, body.replace(b"EV-2", b"EV-3")), "wechatpay-signature")

    assert pay._core.decrypt(platform.encrypt_for_merchant("王小明")) == "王小明"
    assert platform.decrypt(pay._core.encrypt("6222")) == "6222"
    # A string that is no message of the platform's has no parts, and so no signature.
    for string in (b"pay everything to me\n", b"a\nb\nc\nd\n", b"x" * 32):
        try:
            pay._core._private_key.sign(string)
        except (PermissionError, ValueError):
            continue
        raise AssertionError(f"{string} was signed")
    print("wechatpayv3: ok")


def verify(platform, signature, message):
    import base64

    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import padding

    platform.merchant_certificate.public_key().verify(
        base64.b64decode(signature), message, padding.PKCS1v15(), hashes.SHA256()
    )


def refused(call, code):
    try:
        call()
    except PermissionError as error:
        assert f"[{code}]" in str(error), error
    else:
        raise AssertionError(f"not refused with {code}")


def check_node(platform, address, client):
    # require() looks beside the script.
    folder = platform.folder / "node"
    folder.mkdir()
    for name in ("check.js", "opcert-client.js"):
        shutil.copy(HERE / name, folder)
    (folder / "node_modules").symlink_to(NODE_MODULES)
    environment = {**os.environ, "NODE_EXTRA_CA_CERTS": str(platform.folder / "platform-ca.pem")}
    script = folder / "check.js"
    print(run("node", script, platform.address, address, client, MCHID, env=environment).strip())


def check_go(platform, address, client):
    shutil.copytree(HERE / "go", platform.folder / "go")
    trusted = {"SSL_CERT_FILE": str(platform.folder / "platform-ca.pem")}
    arguments = (platform.address, address, client, MCHID)
    environment = {**os.environ, **trusted, "GOFLAGS": "-mod=readonly"}
    check = ("go", "run", "./check", *arguments)
    print(run(*check, cwd=platform.folder / "go", env=environment).strip())
    if LIBRARIES:
        shutil.copytree(LIBRARIES / "go", platform.folder / "go/shop/vendor")
        environment["GOFLAGS"] = "-mod=vendor"
        shop = ("go", "run", ".", *arguments)
        print(run(*shop, cwd=platform.folder / "go/shop", env=environment).strip())


def check_java(platform, address, client):
    out = platform.folder / "java"
    authority = platform.folder / "platform-ca.pem"
    arguments = (platform.address, authority, address, client, MCHID)
    sources, jars, programs = ["Opcert.java", "Check.java"], GSON, ["Check"]
    if LIBRARIES:
        sources += ["OpcertConfig.java", "Shop.java"]
        jars = f"{LIBRARIES}/java/*:{GSON}"
        programs.append("Shop")
    sources = [HERE / "java" / name for name in sources]
    run("javac", "-encoding", "UTF-8", "-Xlint:all,-serial", "-Werror", "-cp", jars, "-d", out, *sources)
    for program in programs:
        print(run("java", "-cp", f"{out}:{jars}", program, *arguments).strip())


def check_php(platform, address, client):
    folder = platform.folder / "php"
    shutil.copytree(HERE / "php", folder)
    programs = ["check.php"]
    if LIBRARIES:
        shutil.copytree(LIBRARIES / "php", folder / "vendor")
        programs.append("shop.php")
    trusted = f"-dcurl.cainfo={platform.folder}/platform-ca.pem"
    for program in programs:
        command = ("php", trusted, folder / program, platform.address, address, client, MCHID)
        print(run(*command).strip())


def check_pages():
    """What the page shows of the examples stands in them."""
    page = (HERE.parents[2] / "docs/wechatpay.md").read_text()
    examples = "".join(
        path.read_text() for path in HERE.glob("*/**/*") if path.suffix in (".go", ".java", ".php")
    )
    for language in ("go", "java", "php"):
        blocks = page.split(f"```{language}\n")[1:]
        assert blocks, language
        for block in blocks:
            block = block.split("```")[0]
            assert block in examples, f"docs/wechatpay.md shows what no example has:\n{block}"


def main(folder):
    platform = Platform(MCHID, APIV3)
    platform.folder = folder
    platform.start(folder)
    # The library knows no other way to be told whom to trust.
    os.environ["REQUESTS_CA_BUNDLE"] = str(folder / "platform-ca.pem")
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = "localhost,127.0.0.1"
    log = (folder / "opcertd.log").open("w")
    command = [BINARIES / "opcertd", "--allow-root", "--config", token(folder)]
    daemon = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        control = folder / "run/control.sock"
        wait_for(control, daemon)

        def opcert(*arguments, stdin=""):
            return run(BINARIES / "opcert", *arguments, "--socket", control, stdin=stdin)

        client = set_up(folder, platform, opcert)
        status = json.loads(opcert("status", "--json"))
        port = status["addresses"]["native"][0].rsplit(":", 1)[1]
        address = f"https://localhost:{port}"
        check_python(platform, Daemon(address, client, MCHID))
        check_node(platform, address, client)
        check_go(platform, address, client)
        check_java(platform, address, client)
        check_php(platform, address, client)
        bad = [request for request in platform.requests if request[2]]
        assert not bad, bad
        # Neither secret is anywhere on this computer but sealed.
        for path in [*folder.glob("state/**/*"), folder / "opcertd.log"]:
            if path.is_file():
                content = path.read_bytes()
                assert APIV3.encode() not in content and API.encode() not in content, path
        print(run(BINARIES / "opcert", "audit", "verify", folder / "state/audit").strip())
    except BaseException:
        print((folder / "opcertd.log").read_text()[-4000:], file=sys.stderr)
        raise
    finally:
        daemon.terminate()
        daemon.wait()


check_pages()
with tempfile.TemporaryDirectory() as directory:
    main(pathlib.Path(directory))
