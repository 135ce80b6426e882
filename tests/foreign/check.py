"""Checks what `softhsm-config/demo --keep DIR` left, with programs nobody here wrote.

A JOSE library verifies the challenge and the approval, openssl the certificate, the revocation
list and the CMS signature. Then each file is damaged, and `opcert` must notice.

    check.py DIR OPCERT [APPROVALS]

APPROVALS holds an approval for each type of key, KEYTYPE.jws, as tests/approvals.rs leaves them.
"""

import base64
import hashlib
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
import traceback

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from joserfc import jws
from joserfc.jwk import KeySet, import_key
from joserfc.util import urlsafe_b64decode, urlsafe_b64encode

KEPT = pathlib.Path(sys.argv[1])
OPCERT = sys.argv[2]
APPROVALS = pathlib.Path(sys.argv[3]) if len(sys.argv) > 3 else None
ALGORITHMS = ["RS256", "PS256", "ES256", "ES384", "Ed25519", "EdDSA"]


def read(name):
    return (KEPT / name).read_text().strip()


def run(*command, expect=0):
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == expect, (
        f"{' '.join(map(str, command))} ended with {result.returncode}:\n"
        f"{result.stdout}{result.stderr}"
    )
    return result.stdout + result.stderr


def header(compact):
    return json.loads(urlsafe_b64decode(compact.split(".")[0].encode()))


def payload(compact):
    return urlsafe_b64decode(compact.split(".")[1].encode())


def leaf():
    return x509.load_pem_x509_certificate((KEPT / "certificate.pem").read_bytes())


def pem_of(key):
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def verify(compact, key):
    registry = jws.JWSRegistry(
        algorithms=ALGORITHMS,
        strict_check_header=False,
    )
    # The library's default of 512 bytes leaves no room for a certificate in the header.
    registry.max_header_length = 64 * 1024
    return json.loads(jws.deserialize_compact(compact, key, registry=registry).payload)


def key_of(certificate, algorithm):
    kind = "OKP" if algorithm.startswith("Ed") else {"E": "EC"}.get(algorithm[0], "RSA")
    return import_key(pem_of(certificate.public_key()), kind)


def an_approval_of_each_key_type_is_a_jws_of_its_certificate():
    if APPROVALS is None:
        print("        (no approvals given)")
        return
    algorithms = {}
    for path in sorted(APPROVALS.glob("*.jws")):
        compact = path.read_text()
        fields = header(compact)
        certificate = x509.load_der_x509_certificate(base64.b64decode(fields["x5c"][0]))
        claims = verify(compact, key_of(certificate, fields["alg"]))
        assert claims["statement"]["operator"] == path.stem, claims
        algorithms[path.stem] = fields["alg"]
    assert algorithms == {
        "rsa2048": "RS256", "rsa3072": "RS256", "p256": "ES256", "p384": "ES384",
        "ed25519": "EdDSA",
    }, algorithms


def the_challenge_is_a_jws_of_the_published_key():
    keys = KeySet.import_key_set(json.loads(read("jwks.json")))
    compact = read("challenge.jws")
    assert header(compact)["typ"] == "opcert-challenge+jwt"
    claims = verify(compact, keys)
    assert claims["aud"] == "opcert"
    assert 0 < claims["exp"] - claims["iat"] <= 120, claims


def the_approval_is_a_jws_of_the_certified_key():
    compact = read("approval.jws")
    fields = header(compact)
    certificate = leaf()
    der = certificate.public_bytes(Encoding.DER)
    assert fields["typ"] == "opcert-approval+jwt"
    assert x509.load_der_x509_certificate(
        base64.b64decode(fields["x5c"][0])
    ) == certificate
    digest = hashlib.sha256(der).digest()
    assert fields["x5t#S256"] == urlsafe_b64encode(digest).decode()
    claims = verify(compact, key_of(certificate, fields["alg"]))

    challenge = read("challenge.jws")
    asked = json.loads(payload(challenge))
    digest = hashlib.sha256(challenge.encode()).digest()
    assert claims["challenge"] == urlsafe_b64encode(digest).decode()
    assert claims["challenge_jti"] == asked["jti"]
    assert claims["statement"] == asked["statement"]
    assert claims["aud"] == asked["iss"]


def the_certificate_chains_to_the_ca():
    with tempfile.TemporaryDirectory() as folder:
        crl = pathlib.Path(folder) / "crl.pem"
        run("openssl", "crl", "-inform", "DER", "-in", KEPT / "crl.der", "-out", crl)
        run(
            "openssl", "verify", "-x509_strict", "-crl_check", "-CAfile", KEPT / "ca.pem",
            "-CRLfile", crl, KEPT / "certificate.pem",
        )


def the_revocation_list_is_signed_by_the_ca():
    said = run(
        "openssl", "crl", "-inform", "DER", "-in", KEPT / "crl.der",
        "-CAfile", KEPT / "ca.pem", "-noout",
    )
    assert "verify OK" in said, said


def openssl_accepts_the_cms_signature():
    with tempfile.TemporaryDirectory() as folder:
        content = pathlib.Path(folder) / "payload"
        content.write_bytes(payload(read("approval.jws")))
        command = [
            "openssl", "cms", "-verify", "-binary", "-inform", "DER",
            "-in", KEPT / "approval.p7s", "-content", content,
            "-CAfile", KEPT / "ca.pem", "-out", "/dev/null",
        ]
        run(*command)
        content.write_bytes(content.read_bytes() + b" ")
        run(*command, expect=4)


# What pkilint finds, and why it is no fault.
NO_FAULT = {
    # A URI has a host where it has an authority (RFC 5280 section 4.2.1.6); a URN has none.
    ("certificate.pem", "pkix.invalid_uri_syntax"),
    # The one name that is never looked up in the DNS has one label (RFC 6761 section 6.3).
    ("server-ca.pem", "pkix.invalid_domain_name_syntax"),
}


def public_linters_find_no_fault_in_the_profiles():
    linters = pathlib.Path(sys.executable).parent

    def lint(name, program, *arguments):
        command = [linters / program, "lint", "-s", "WARNING", "-f", "JSON", *arguments]
        result = subprocess.run(command, capture_output=True, text=True)
        assert result.stdout, result.stderr
        for node in json.loads(result.stdout)["results"]:
            for finding in node["finding_descriptions"]:
                assert (name, finding["code"]) in NO_FAULT, (name, finding)

    for name in ("ca.pem", "certificate.pem", "server-ca.pem", "client.pem"):
        lint(name, "lint_pkix_cert", KEPT / name)
    with tempfile.TemporaryDirectory() as folder:
        crl = pathlib.Path(folder) / "crl.pem"
        run("openssl", "crl", "-inform", "DER", "-in", KEPT / "crl.der", "-out", crl)
        lint("crl.der", "lint_crl", "-p", "PKIX", "-t", "CRL", crl)


def opcert_verifies_offline_and_notices_damage():
    command = [OPCERT, "verify", "--ca", KEPT / "ca.pem", "--crl", KEPT / "crl.der"]
    run(*command, KEPT / "approval.jws")
    compact = read("approval.jws")
    with tempfile.TemporaryDirectory() as folder:
        damaged = pathlib.Path(folder) / "approval.jws"
        for part in range(3):
            parts = compact.split(".")
            middle = len(parts[part]) // 2
            swapped = "A" if parts[part][middle] != "A" else "B"
            parts[part] = parts[part][:middle] + swapped + parts[part][middle + 1 :]
            damaged.write_text(".".join(parts))
            said = run(*command, damaged, expect=1)
            assert "Traceback" not in said and "panicked" not in said, said


def opcert_finds_a_damaged_record():
    run(OPCERT, "audit", "verify", KEPT / "audit")
    with tempfile.TemporaryDirectory() as folder:
        for at in (0.1, 0.5, 0.9):
            copy = pathlib.Path(folder) / f"audit-{at}"
            shutil.copytree(KEPT / "audit", copy)
            longest = max(
                (path for path in copy.rglob("*") if path.is_file()),
                key=lambda path: path.stat().st_size,
            )
            text = bytearray(longest.read_bytes())
            text[int(len(text) * at)] ^= 1
            longest.write_bytes(text)
            run(OPCERT, "audit", "verify", copy, expect=1)


def the_client_certificate_chains_to_the_local_ca():
    run(
        "openssl", "verify", "-x509_strict", "-purpose", "sslclient",
        "-CAfile", KEPT / "server-ca.pem", KEPT / "client.pem",
    )
    assert (KEPT / "client-key.pem").stat().st_mode & 0o077 == 0


def the_documented_script_verifies_it_and_nothing_else():
    page = (pathlib.Path(__file__).parent / "../../docs/verify-approvals.md").read_text()
    script = page.split("```python\n")[1].split("```")[0]
    asked = json.loads(payload(read("challenge.jws")))
    with tempfile.TemporaryDirectory() as folder:
        program = pathlib.Path(folder) / "verify.py"
        program.write_text(script)
        arguments = [KEPT / name for name in ("ca.pem", "crl.der", "challenge.jws")]
        command = [sys.executable, program, asked["iss"], *arguments]
        assert json.loads(run(*command, KEPT / "approval.jws")) == asked["statement"]
        parts = read("approval.jws").split(".")
        parts[2] = parts[2][::-1]
        damaged = pathlib.Path(folder) / "approval.jws"
        damaged.write_text(".".join(parts))
        assert "the signature" in run(*command, damaged, expect=1)


CHECKS = [
    the_challenge_is_a_jws_of_the_published_key,
    the_approval_is_a_jws_of_the_certified_key,
    an_approval_of_each_key_type_is_a_jws_of_its_certificate,
    the_certificate_chains_to_the_ca,
    the_revocation_list_is_signed_by_the_ca,
    public_linters_find_no_fault_in_the_profiles,
    openssl_accepts_the_cms_signature,
    opcert_verifies_offline_and_notices_damage,
    opcert_finds_a_damaged_record,
    the_client_certificate_chains_to_the_local_ca,
    the_documented_script_verifies_it_and_nothing_else,
]

failed = 0
for check in CHECKS:
    try:
        check()
        print(f"ok      {check.__name__.replace('_', ' ')}")
    except Exception:
        failed += 1
        print(f"FAILED  {check.__name__.replace('_', ' ')}")
        traceback.print_exc()
print(f"{len(CHECKS) - failed} passed, {failed} failed")
sys.exit(1 if failed else 0)
