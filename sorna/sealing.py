"""Sealed messages between the holders of two CURVE keys: nobody else reads them, and nobody changes them unnoticed.

Used where two parties exchange keys over a connection that is not to be trusted. X25519 gives both the same secret, HKDF makes
a key of it that is bound to both public keys, the direction and the purpose, and ChaCha20-Poly1305 encrypts. Knows the
spelling of keys (Z85), and nothing of what is said or over what it travels.
"""

from __future__ import annotations

import secrets

from attrs import frozen
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from zmq.utils import z85

from sorna.curve_keys import CurveKeypair, valid_public_key

NONCE = 12
#: What sealing adds to a message: the nonce and the tag.
OVERHEAD = NONCE + 16


class Broken(Exception):
    """What was sealed cannot be opened: it is for somebody else, from somebody else, or not what was sent."""


@frozen
class Seal:
    """Seals and opens messages in the name of one keypair.

    :ivar keypair: our own.
    """

    keypair: CurveKeypair

    def close(self, message: bytes, recipient: str, purpose: bytes, secret: bytes = b"") -> bytes:
        """Seal a message for the holder of a public key.

        :param recipient: a public key in Z85.
        :param purpose: names the kind of message; one of another kind does not open in its place.
        :param secret: what both sides know besides; without it the message does not open.
        :raises Broken: the recipient's key is none.
        """
        key = self._key(recipient, self.keypair.public + recipient, purpose, secret)
        nonce = secrets.token_bytes(NONCE)
        return nonce + ChaCha20Poly1305(key).encrypt(nonce, message, purpose)

    def open(self, sealed: bytes, sender: str, purpose: bytes, secret: bytes = b"") -> bytes:
        """Open what the holder of a public key has sealed for us; parameters as in :meth:`close`.

        :raises Broken: see there.
        """
        if len(sealed) < OVERHEAD:
            raise Broken("too short")
        key = self._key(sender, sender + self.keypair.public, purpose, secret)
        try:
            return ChaCha20Poly1305(key).decrypt(sealed[:NONCE], sealed[NONCE:], purpose)
        except InvalidTag:
            raise Broken("it is not what was sent, or not for this key") from None

    def _key(self, peer: str, direction: str, purpose: bytes, secret: bytes) -> bytes:
        if not valid_public_key(peer):
            raise Broken("that is no public key")
        own = X25519PrivateKey.from_private_bytes(z85.decode(self.keypair.secret))
        try:
            shared = own.exchange(X25519PublicKey.from_public_bytes(z85.decode(peer)))
        except ValueError:  # one of the few keys that make the same secret with everybody's
            raise Broken("that is no public key") from None
        derivation = HKDF(algorithm=SHA256(), length=32, salt=secret or None, info=purpose + direction.encode("ascii"))
        return derivation.derive(shared)
