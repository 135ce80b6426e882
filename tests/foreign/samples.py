"""Checks the published samples with programs nobody here wrote.

    samples.py DIR

Every sample the manifest calls good must be accepted and every other refused, by joserfc,
cryptography, and the rules that DIR/README.md states. Rules about look-alike letters need data of
Unicode that Python does not have; a sample whose layer is `text` only has to be signed.
"""

import base64
import hashlib
import json
import pathlib
import sys
from datetime import datetime, timezone

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jwk import KeySet, import_key
from joserfc.util import urlsafe_b64decode, urlsafe_b64encode

SAMPLES = pathlib.Path(sys.argv[1])
MANIFEST = json.loads((SAMPLES / "manifest.json").read_text())
NOW, ISSUER = MANIFEST["now"], MANIFEST["issuer"]
KEYS = KeySet.import_key_set(json.loads((SAMPLES / "jwks.json").read_text()))
CA = x509.load_pem_x509_certificate((SAMPLES / "ca.pem").read_bytes())

CHALLENGE = {"iss", "aud", "jti", "iat", "exp", "sub", "operator", "statement"}
APPROVAL = {
    "aud", "jti", "iat", "challenge", "challenge_jti", "statement", "client", "origin", "computer",
    "consent",
}
FACTS = {
    "kind", "account", "operator", "amount", "currency", "payee", "payees", "count", "reference",
    "memo",
}
MOVES_MONEY = {"balance-top-up", "withdrawal", "red-packet"}
KINDS = {
    pathlib.Path(sample["file"]).stem
    for sample in MANIFEST["samples"]
    if sample["kind"] == "challenge" and sample["valid"]
}


class Refused(Exception):
    pass


def hold(condition, why):
    if not condition:
        raise Refused(why)


def no_duplicates(pairs):
    hold(len({name for name, _ in pairs}) == len(pairs), "a name is there twice")
    return dict(pairs)


def no_floats(text):
    raise Refused(f"{text} is no plain integer")


def strict(data):
    return json.loads(data, object_pairs_hook=no_duplicates, parse_float=no_floats)


def signed(compact, key, algorithms, typ):
    header = strict(urlsafe_b64decode(compact.split(".")[0].encode()))
    hold(header.get("typ") == typ, "typ")
    hold(header.get("alg") in algorithms, "alg")
    registry = jws.JWSRegistry(algorithms=[*algorithms, "Ed25519"], strict_check_header=False)
    registry.max_header_length = 64 * 1024
    return header, strict(jws.deserialize_compact(compact, key(header), registry=registry).payload)


def check_statement(facts):
    hold(set(facts) <= FACTS, "a fact is not known")
    hold(facts.get("kind") in KINDS, "kind")
    has_amount = facts["kind"] in MOVES_MONEY
    hold(("amount" in facts) == has_amount == ("currency" in facts), "amount")
    hold(("payee" in facts) != ("payees" in facts), "payee")
    if has_amount:
        hold(type(facts["amount"]) is int, "amount is no integer")
        hold(1 <= facts["amount"] <= 2**53 - 1, "amount")
        hold(facts["currency"] in {"CNY"}, "currency")


def check_challenge(compact):
    def key(header):
        hold(set(header) == {"typ", "alg", "kid"}, "header")
        hold(header["kid"] in {key.kid for key in KEYS.keys}, "kid")
        return KEYS

    _, claims = signed(compact, key, ["ES256"], "opcert-challenge+jwt")
    hold(set(claims) == CHALLENGE, "claims")
    hold(claims["iss"] == ISSUER and claims["aud"] == "opcert", "iss, aud")
    hold(0 < claims["exp"] - claims["iat"] <= 600, "lifetime")
    hold(claims["iat"] <= NOW + 30 and NOW < claims["exp"], "time")
    check_statement(claims["statement"])
    hold(claims["statement"]["account"] == claims["sub"], "sub")
    hold(claims["statement"]["operator"] == claims["operator"], "operator")
    return claims


def check_approval(compact, challenge):
    def key(header):
        hold(set(header) == {"typ", "alg", "x5c", "x5t#S256"}, "header")
        der = base64.b64decode(header["x5c"][0])
        digest = urlsafe_b64encode(hashlib.sha256(der).digest()).decode()
        hold(header["x5t#S256"] == digest, "x5t#S256")
        leaf = x509.load_der_x509_certificate(der)
        leaf.verify_directly_issued_by(CA)
        now = datetime.fromtimestamp(NOW, timezone.utc)
        hold(leaf.not_valid_before_utc <= now <= leaf.not_valid_after_utc, "validity")
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        header["urn"] = names.get_values_for_type(x509.UniformResourceIdentifier)
        pem = leaf.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        family = {"E": "EC", "R": "RSA", "P": "RSA"}[header["alg"][0]]
        return import_key(pem.decode(), "OKP" if header["alg"] == "EdDSA" else family)

    algorithms = ["RS256", "PS256", "ES256", "ES384", "EdDSA"]
    header, claims = signed(compact, key, algorithms, "opcert-approval+jwt")
    hold(set(claims) == APPROVAL, "claims")
    digest = hashlib.sha256(challenge.encode()).digest()
    hold(claims["challenge"] == urlsafe_b64encode(digest).decode(), "challenge")
    asked = strict(urlsafe_b64decode(challenge.split(".")[1].encode()))
    hold(claims["challenge_jti"] == asked["jti"], "challenge_jti")
    hold(claims["statement"] == asked["statement"], "statement")
    hold(claims["aud"] == ISSUER, "aud")
    statement = claims["statement"]
    urn = (
        f"urn:opcert:account:{statement['account']}:operator:{statement['operator']}"
        f":computer:{claims['computer']}"
    )
    hold(header["urn"] == [urn], "identity")


def check_digest():
    payees = json.loads((SAMPLES / "payees.json").read_text())
    text = "opcert-payees-v1\n" + "".join(f"{one['amount']}\t{one['payee']}\n" for one in payees)
    digest = urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode()
    batch = check_challenge(read("challenges/good/batch.jws"))["statement"]
    hold(batch["payees"] == digest, "the digest of the list")
    hold(batch["amount"] == sum(one["amount"] for one in payees), "the sum of the list")
    hold(batch["count"] == len(payees), "the length of the list")


def read(name):
    return (SAMPLES / name).read_text().strip()


failed = 0
KINDS.discard("batch")
for sample in MANIFEST["samples"]:
    accept = sample["valid"] or sample["layer"] == "text"
    try:
        if sample["kind"] == "challenge":
            check_challenge(read(sample["file"]))
        else:
            check_approval(read(sample["file"]), read(sample["challenge"]))
        seen = None
    except (Refused, JoseError, InvalidSignature, ValueError) as error:
        seen = f"{type(error).__name__}: {error}"
    if accept != (seen is None):
        failed += 1
        print(f"FAILED  {sample['file']}: {seen or 'was accepted'}")
check_digest()
print(f"{len(MANIFEST['samples']) - failed} samples are as the manifest says, {failed} are not")
sys.exit(1 if failed else 0)
