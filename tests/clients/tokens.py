#!/usr/bin/env python3
"""Makes keys and tokens for the test of `jwt` (tests/integration/jwt.rs): the keys by openssl, the tokens by PyJWT, and
by hand those that PyJWT will not make.

usage: tokens.py FOLDER NOW
       tokens.py FOLDER sign <WANTED

Writes into FOLDER the public keys: pkcs1.pem, spki.pem, keys/{system,other}.pem, jwks.json. Prints one JSON object of
tokens by name. All are of the account ACCOUNT and as of NOW (Unix seconds) good, but for what their name says.

With `sign` it prints more tokens by the keys that are in FOLDER. WANTED is a JSON object, by name, of what is to be in
each: `key`, `algorithm` and `kid`, and the claims.
"""

import base64
import hashlib
import hmac
import json
import pathlib
import subprocess
import sys

import jwt
from cryptography.hazmat.primitives.serialization import load_pem_private_key

ACCOUNT = "4b8c6fec4b2597882c0390202d195419"


def openssl(*arguments, data=None):
    done = subprocess.run(["openssl", *arguments], input=data, check=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    return done.stdout


def new_key(folder, name, exponent, bits=2048):
    """A private key, as PEM and in a file of its own."""
    file = folder / f"{name}.private"
    options = ["-pkeyopt", f"rsa_keygen_bits:{bits}", "-pkeyopt", f"rsa_keygen_pubexp:{exponent}"]
    openssl("genpkey", "-algorithm", "RSA", *options, "-out", str(file))
    return file


def base64url(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def by_hand(header, claims, sign):
    """A token of these JSON texts; `sign` makes the signature of the first two parts."""
    signed = base64url(header.encode()) + b"." + base64url(claims.encode())
    return (signed + b"." + base64url(sign(signed))).decode()


def private_keys(folder):
    return {name: load_pem_private_key((folder / f"{name}.private").read_bytes(), None) for name in ("system", "other")}


def sign(folder, wanted):
    private = private_keys(folder)

    def token(key="system", algorithm="RS256", kid="system", **claims):
        claims = {"iss": "kazoo", "account_id": ACCOUNT, **claims}
        return jwt.encode(claims, private[key], algorithm=algorithm, headers={"kid": kid})

    print(json.dumps({name: token(**one) for name, one in wanted.items()}))


def main(folder, now):
    # The platform makes its keys with the exponent 2049.
    system = new_key(folder, "system", 2049)
    other = new_key(folder, "other", 65537, 3072)
    public = {
        "pkcs1": openssl("rsa", "-in", str(system), "-RSAPublicKey_out"),
        "spki": openssl("rsa", "-in", str(system), "-pubout"),
    }
    for name, pem in public.items():
        (folder / f"{name}.pem").write_bytes(pem)
    (folder / "keys").mkdir()
    (folder / "keys/system.pem").write_bytes(public["pkcs1"])
    (folder / "keys/other.pem").write_bytes(openssl("rsa", "-in", str(other), "-pubout"))
    private = private_keys(folder)
    jwks = []
    for kid, key in private.items():
        jwk = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key()))
        jwks.append({**jwk, "kid": kid, "use": "sig"})
    (folder / "jwks.json").write_text(json.dumps({"keys": jwks}))

    def token(key="system", algorithm="RS256", kid="system", header=None, **claims):
        """`claims` over those of a good token; one that is None is left out."""
        good = {"iss": "kazoo", "account_id": ACCOUNT, "owner_id": "0" * 32, "method": "cb_user_auth", "exp": now + 60}
        claims = {name: claim for name, claim in {**good, **claims}.items() if claim is not None}
        header = {**({"kid": kid} if kid else {}), **(header or {})}
        return jwt.encode(claims, private[key] if key else None, algorithm=algorithm, headers=header)

    def signs(file):
        return lambda signed: openssl("dgst", "-sha256", "-sign", str(file), data=signed)

    def mac(secret):
        return lambda signed: hmac.new(secret, signed, hashlib.sha256).digest()

    header = '{"alg":"RS256","typ":"JWT","kid":"system"}'
    hs256 = '{"alg":"HS256","typ":"JWT","kid":"system"}'
    claims = json.dumps({"iss": "kazoo", "account_id": ACCOUNT})
    twice = f'{{"iss":"kazoo","account_id":"{ACCOUNT}","exp":{now + 60},"exp":{now + 999999}}}'
    tokens = {
        "rs256": token(),
        "rs384": token(algorithm="RS384"),
        "rs512": token(algorithm="RS512"),
        "signed by openssl": by_hand(header, claims, signs(system)),
        "without exp": token(exp=None),
        "expired within the leeway": token(exp=now - 20),
        "early within the leeway": token(nbf=now + 20),
        "long": token(more="x" * 4500),
        "of the other key": token(key="other", kid="other"),
        "of the other key, rs512": token(key="other", kid="other", algorithm="RS512"),
        "no kid": token(kid=None),
        "unknown kid": token(kid="unknown"),
        "wrong key": token(key="other"),
        "wrong kid": token(kid="other"),
        "none": token(key=None, algorithm="none"),
        "rs256 without a signature": by_hand(header, claims, lambda _signed: b""),
        "hs256 by the public key": by_hand(hs256, claims, mac(public["spki"])),
        "hs256 by the public key, pkcs1": by_hand(hs256, claims, mac(public["pkcs1"])),
        "rs256 in name, hmac in truth": by_hand(header, claims, mac(public["spki"])),
        "ps256": token(algorithm="PS256"),
        "too long": token(more="x" * 12000),
        "no account": token(account_id=None),
        "no account id": token(account_id="system"),
        "no issuer": token(iss=None),
        "another issuer": token(iss="https://accounts.google.com"),
        "expired": token(exp=now - 31),
        "not yet valid": token(nbf=now + 31),
        "a claim twice": by_hand(header, twice, signs(system)),
        "exp as text": by_hand(header, claims.replace("}", f', "exp": "{now + 60}"}}'), signs(system)),
        "exp too large": by_hand(header, claims.replace("}", ', "exp": 1e300}'), signs(system)),
        "claims are no json": by_hand(header, "iss=kazoo", signs(system)),
        "critical header": token(header={"crit": ["exp"]}),
    }
    print(json.dumps(tokens))


if sys.argv[2] == "sign":
    sign(pathlib.Path(sys.argv[1]), json.load(sys.stdin))
else:
    main(pathlib.Path(sys.argv[1]), int(sys.argv[2]))
