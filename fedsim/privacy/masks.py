"""Masks modulo 2^64: two ends agree on a key, and a stream cipher makes as many numbers of it as are wanted.

Shapes: P numbers of a stream.
"""

import hashlib
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

KEY_BYTES = 32
#: Numbers modulo 2^64.
Numbers = np.ndarray[Any, np.dtype[np.uint64]]

# Numbers that are made at once: few enough to stay in a core's cache until they are added.
AT_ONCE = 2**14
_BLOCK_BYTES = 16
_ZEROS = bytes(8 * AT_ONCE)


class Agreement:
    """Keys of pairs, by X25519 (RFC 7748) and HKDF-SHA256 (RFC 5869).

    Either end comes to the same key. Where one process plays both, the second is given what the first has computed.
    """

    def __init__(self) -> None:
        self._known: dict[frozenset[bytes], bytes] = {}

    def key(self, private: X25519PrivateKey, own: bytes, other: bytes) -> bytes:
        """Return the key of two public keys, of which the first is that of ``private``."""
        pair = frozenset((own, other))
        if pair not in self._known:
            secret = private.exchange(X25519PublicKey.from_public_bytes(other))
            derived = HKDF(SHA256(), KEY_BYTES, salt=None, info=b"".join(sorted(pair)))
            self._known[pair] = derived.derive(secret)
        return self._known[pair]


def add_mask(total_P: Numbers, key: bytes, stream: str, sign: int) -> None:
    """Add the mask of a key and a stream's name to ``total_P``, or subtract it, modulo 2^64, in place.

    AES-256 in counter mode. Every stream of a key has a place of its own, which follows from its name.
    """
    place = hashlib.blake2b(stream.encode(), digest_size=_BLOCK_BYTES // 2).digest() + bytes(_BLOCK_BYTES // 2)
    encryptor = Cipher(AES256(key), CTR(place)).encryptor()
    buffer = bytearray(8 * min(AT_ONCE, len(total_P)) + _BLOCK_BYTES)
    zeros, numbers = memoryview(_ZEROS), np.frombuffer(buffer, dtype="<u8")
    combine = np.add if sign > 0 else np.subtract
    for start in range(0, len(total_P), AT_ONCE):
        part_P = total_P[start : start + AT_ONCE]
        encryptor.update_into(zeros[: part_P.nbytes], buffer)
        combine(part_P, numbers[: len(part_P)], out=part_P)
