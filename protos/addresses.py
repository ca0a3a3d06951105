"""Where routers are reached, and which of them is asked next."""

import threading
from collections.abc import Sequence

from rayline.protos.errors import ConfigError

AVOID_S = 5.0  # a router that failed is asked again after this time, or when all others failed later


def check_address(address: str) -> str:
    """`address` if it reads host:port. Raises ConfigError otherwise."""
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ConfigError(f"address = {address!r} is not host:port, such as 127.0.0.1:9000", field="address")
    return address


def addresses_of(text: str) -> tuple[str, ...]:
    """Several addresses with commas between them. Raises ConfigError unless each reads host:port."""
    return tuple(check_address(part.strip()) for part in text.split(","))


class Addresses:
    """The routers of one deployment. They are asked in turn; those that failed lately only when there is no other.

    Routers that others named are asked only while all of the client's own have failed: they may be names that mean
    nothing where the client is. Safe to use from several threads.
    """

    def __init__(self, addresses: Sequence[str]):
        """Raises ConfigError unless there is one at least and each reads host:port."""
        if not addresses:
            raise ConfigError("addresses is empty: at least one router must be named", field="address")
        self._own = list(dict.fromkeys(map(check_address, addresses)))
        self._all = list(self._own)
        self._failed_s: dict[str, float] = {}
        self._turn = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._all)

    def choose(self, now_s: float) -> str:
        """The next one to ask: in turn, or when all failed lately the one for which that is longest ago."""
        with self._lock:
            well = self._well(self._own, now_s) or self._well(self._all, now_s)
            if not well:
                return min(self._all, key=lambda address: self._failed_s[address])
            self._turn += 1
            return well[(self._turn - 1) % len(well)]

    def failed(self, address: str, now_s: float) -> None:
        """A call there could not be made, or was lost."""
        with self._lock:
            self._failed_s[address] = now_s

    def learn(self, addresses: Sequence[str]) -> None:
        """Routers that others named. Those that do not read as addresses are left out."""
        with self._lock:
            self._all += [address for address in addresses if address not in self._all and _reads(address)]

    def _well(self, addresses: Sequence[str], now_s: float) -> list[str]:
        return [address for address in addresses if now_s - self._failed_s.get(address, -AVOID_S) >= AVOID_S]


def _reads(address: str) -> bool:
    try:
        return bool(check_address(address))
    except ConfigError:
        return False
