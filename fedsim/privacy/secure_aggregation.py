"""Secure aggregation: the server learns the sum of what clients send, and of a single client's message nothing.

Bonawitz et al., Practical secure aggregation for privacy-preserving machine learning, CCS 2017, figure 4, for a server
that follows the protocol and is curious. Every two clients share a mask, which one adds and the other subtracts; every
client adds a mask of its own. All is modulo 2^64. What a mask follows from is shared out among all clients, so that the
server can take away the own masks of those who stayed, and the pair masks of those who were lost.

The dataclasses are the messages, and all that the ``Server`` is given. In a simulation the keys are no secret: they
follow from the run's seed.
"""

import struct
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from fedsim.privacy.masks import KEY_BYTES, Agreement, Numbers, add_mask
from fedsim.privacy.shamir import SHARE_BYTES, Random, Share, rebuild, split

# A client's number in a message.
ID_BYTES = 8


@dataclass(frozen=True)
class AdvertisedKeys:
    """Round 0, to the server and on to everyone: a client's public keys, X25519.

    ``cipher_key``: for what clients send each other. ``mask_key``: for the masks.
    """

    client: int
    cipher_key: bytes
    mask_key: bytes

    @property
    def nbytes(self) -> int:
        return ID_BYTES + len(self.cipher_key) + len(self.mask_key)


@dataclass(frozen=True)
class SealedShares:
    """Round 1, to the server and on to one client each: by holder, its shares of the sender's secrets, encrypted."""

    sender: int
    sealed: Mapping[int, bytes]

    @property
    def nbytes(self) -> int:
        return ID_BYTES + sum(ID_BYTES + len(text) for text in self.sealed.values())


@dataclass(frozen=True)
class RevealedShares:
    """Round 3, to the server: a holder's shares of the own masks of who stayed, and of the mask keys of who was lost.

    Round 2 is the masked input, and the server's word on whose has arrived.
    """

    own_masks: Mapping[int, Share]
    mask_keys: Mapping[int, Share]

    @property
    def nbytes(self) -> int:
        return (len(self.own_masks) + len(self.mask_keys)) * (ID_BYTES + SHARE_BYTES)


class Client:
    """A client's side in one phase. Secrets stay here; its methods are called in their order, each once."""

    def __init__(self, client: int, threshold: int, random: Random, agreement: Agreement) -> None:
        """``random``: where its secrets come from. ``agreement``: shared with clients of the same process."""
        self.client = client
        self._threshold = threshold
        self._random = random
        self._agreement = agreement
        self._cipher_secret, self._mask_secret, self._own_mask = (random.bytes(KEY_BYTES) for _ in range(3))
        self._cipher_key = X25519PrivateKey.from_private_bytes(self._cipher_secret)
        self._mask_key = X25519PrivateKey.from_private_bytes(self._mask_secret)
        self._public = AdvertisedKeys(client, public_bytes(self._cipher_key), public_bytes(self._mask_key))
        self._keys: dict[int, AdvertisedKeys] = {}
        self._shares_of: dict[int, tuple[Share, Share]] = {}
        self._pair_masks: dict[int, bytes] = {}
        self._streams: set[str] = set()
        self._has_revealed = False

    def advertise(self) -> AdvertisedKeys:
        """Round 0."""
        return self._public

    def share(self, keys: Sequence[AdvertisedKeys]) -> SealedShares:
        """Round 1: split both secrets among all clients of the phase, whose ``keys`` these are."""
        self._keys = {other.client: other for other in keys}
        splits = [split(s, self._threshold, len(keys), self._random) for s in (self._own_mask, self._mask_secret)]
        sealed = {}
        for holder, own_mask, mask_key in zip(self._keys, *splits, strict=True):
            if holder == self.client:
                self._shares_of[holder] = own_mask, mask_key
            else:
                text = b"".join(share.y.to_bytes(SHARE_BYTES) for share in (own_mask, mask_key))
                sealed[holder] = self._seal(holder).encrypt(nonce(self.client, holder), text, None)
        return SealedShares(self.client, sealed)

    def take(self, sealed: Mapping[int, bytes]) -> None:
        """Take the shares that are meant for this client, by sender, and agree on masks with all who sent some."""
        x = self._shares_of[self.client][0].x
        for sender, text in sealed.items():
            plain = self._seal(sender).decrypt(nonce(sender, self.client), text, None)
            own_mask, mask_key = (int.from_bytes(half) for half in (plain[:SHARE_BYTES], plain[SHARE_BYTES:]))
            self._shares_of[sender] = Share(x, own_mask), Share(x, mask_key)

    def add_masks(self, numbers_P: Numbers, stream: str) -> None:
        """Round 2: mask numbers in place. A stream masks once: two messages under one mask tell their difference."""
        assert stream not in self._streams, f"{stream} masks a second message"
        self._streams.add(stream)
        if not self._pair_masks:
            self._pair_masks = {
                other: self._agreement.key(self._mask_key, self._public.mask_key, self._keys[other].mask_key)
                for other in self._shares_of
                if other != self.client
            }
        add_mask(numbers_P, self._own_mask, stream, 1)
        for other, key in self._pair_masks.items():
            add_mask(numbers_P, key, stream, sign(self.client, other))

    def reveal(self, stayed: Collection[int]) -> RevealedShares:
        """Round 3: for each client one of the two shares, never both.

        RuntimeError where fewer than the threshold stayed, or the server asks a second time.
        """
        if len(stayed) < self._threshold:
            raise RuntimeError(f"client {self.client}: {len(stayed)} clients left, {self._threshold} needed")
        if self._has_revealed:
            raise RuntimeError(f"client {self.client}: asked for shares a second time")
        self._has_revealed = True
        return RevealedShares(
            {client: own_mask for client, (own_mask, _) in self._shares_of.items() if client in stayed},
            {client: mask_key for client, (_, mask_key) in self._shares_of.items() if client not in stayed},
        )

    def _seal(self, other: int) -> AESGCM:
        key = self._agreement.key(self._cipher_key, self._public.cipher_key, self._keys[other].cipher_key)
        return AESGCM(key)


class Server:
    """The server's side in one phase: what is left of the masks in a sum of masked messages."""

    def __init__(self, keys: Sequence[AdvertisedKeys], threshold: int) -> None:
        self._keys = {key.client: key for key in keys}
        self._threshold = threshold
        self._own_masks: dict[int, bytes] = {}
        self._pair_masks: list[tuple[bytes, int]] = []

    def rebuild(self, revealed: Sequence[RevealedShares]) -> None:
        """Take the answers of those who stayed.

        ValueError for shares that make no secret, or another key than the advertised one.
        """
        stayed, lost = revealed[0].own_masks, revealed[0].mask_keys
        self._own_masks = {
            client: rebuild([answer.own_masks[client] for answer in revealed], self._threshold) for client in stayed
        }
        agreement = Agreement()
        for client in lost:
            secret = rebuild([answer.mask_keys[client] for answer in revealed], self._threshold)
            private, public = X25519PrivateKey.from_private_bytes(secret), self._keys[client].mask_key
            if public_bytes(private) != public:
                raise ValueError(f"shares of client {client}'s mask key that do not make the key that it advertised")
            for other in stayed:
                key = agreement.key(private, public, self._keys[other].mask_key)
                self._pair_masks.append((key, sign(other, client)))

    def take_away(self, numbers_P: Numbers, stream: str) -> None:
        """Unmask a stream's sum over all who stayed, in place."""
        for own_mask in self._own_masks.values():
            add_mask(numbers_P, own_mask, stream, -1)
        for key, sign_of_stayed in self._pair_masks:
            add_mask(numbers_P, key, stream, -sign_of_stayed)


def sign(client: int, other: int) -> int:
    """Return 1 or -1: whether ``client`` adds or subtracts the mask that it shares with the other."""
    return 1 if client > other else -1


def nonce(sender: int, holder: int) -> bytes:
    """Return twelve bytes that differ for the two directions of a pair, whose key lives for one phase."""
    return struct.pack(">Q", sender)[2:] + struct.pack(">Q", holder)[2:]


def public_bytes(private: X25519PrivateKey) -> bytes:
    """Return the public key of a private one."""
    return private.public_key().public_bytes_raw()
