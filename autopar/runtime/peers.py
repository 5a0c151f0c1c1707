"""When a collective fails because another process is gone: which one.

gloo then says "Connection closed by peer [127.0.0.1]:34567", and not who that was. So each process holds a socket open that it
never reads, and puts the address into the job's store. The kernel closes the socket with the process, however that ends; a
survivor whose collective failed tries all addresses, and those that refuse are gone. Nothing runs before something fails.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import time
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException

from autopar.errors import AutoparError, PeerError
from autopar.torch_private import default_store

PREFIX = "autopar/peers"
LOOKS_LIKE_A_PEER = re.compile(
    r"closed by peer|connection (reset|refused|was lost)|broken pipe|timed? ?out|socket|nccl|gloo|remote process exited", re.I
)
PATIENCE_S, PAUSE_S, CONNECT_S = 3.0, 0.1, 1.0
"""For how long a failed collective is looked into, how often, and how long one attempt to connect may take."""


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A process of the job, and where its socket listens."""

    rank: int
    pid: int
    host: str
    address: str
    port: int

    def __str__(self) -> str:
        return f"rank {self.rank} (process {self.pid} on {self.host})"

    def is_gone(self) -> bool:
        """Whether nothing listens there any more. A machine that does not answer at all is not counted as gone."""
        try:
            with socket.create_connection((self.address, self.port), timeout=CONNECT_S):
                return False
        except ConnectionRefusedError:
            return True
        except OSError:
            return False


class Peers:
    """The processes of the default process group, as one of them sees them."""

    def __init__(self) -> None:
        """Waits until each process has come here."""
        rank, self.store = dist.get_rank(), default_store()
        self.place = f"{PREFIX}/{self.store.add(f'{PREFIX}/count/{rank}', 1)}"
        listening = socket.create_server((own_address(), 0))
        close_in_forks(listening)
        weakref.finalize(self, listening.close)
        address, port = listening.getsockname()[:2]
        me = Peer(rank=rank, pid=os.getpid(), host=socket.gethostname(), address=address, port=port)
        self.store.set(f"{self.place}/{rank}", json.dumps(asdict(me)))
        texts = [self.store.get(f"{self.place}/{other}") for other in range(dist.get_world_size()) if other != rank]
        self.known = [Peer(**json.loads(text)) for text in texts]

    @contextlib.contextmanager
    def guard(self) -> Iterator[None]:
        """Inside it, a failure that comes from a process that is gone is a PeerError that names it.

        The parallel module's forward and backward are inside. Around a whole loop it is for optimizers, clipping, checkpoints.
        """
        try:
            yield
        except PeerError:
            raise
        except (RuntimeError, AutoparError, CheckpointException) as error:
            said = str(error)
            suspicious = LOOKS_LIKE_A_PEER.search(said) is not None
            if gone := self.gone(PATIENCE_S if suspicious else 0.0):
                raise PeerError(message(self.first(gone), said), ranks=tuple(p.rank for p in gone)) from error
            if suspicious:
                error.add_note("autopar: the processes of all other ranks are alive, so one of them is stuck, or in other code")
            raise

    def gone(self, patience_s: float) -> list[Peer]:
        """Those whose process has ended, looked for until one is found or the time is over."""
        until = time.monotonic() + patience_s
        while True:
            gone = [peer for peer in self.known if peer.is_gone()]
            if gone or time.monotonic() >= until:
                return gone
            time.sleep(PAUSE_S)

    def first(self, gone: Sequence[Peer]) -> list[Peer]:
        """Of those that are gone the ones that were found first by any rank: the others ended because of them."""
        ranks = {peer.rank for peer in gone}
        try:
            text = self.store.compare_set(f"{self.place}/gone", "", json.dumps(sorted(ranks)))
            ranks = set(json.loads(text)) & ranks or ranks
        except (RuntimeError, ValueError):
            pass
        return [peer for peer in gone if peer.rank in ranks]


_PEERS: weakref.WeakKeyDictionary[dist.ProcessGroup, Peers] = weakref.WeakKeyDictionary()


def peers() -> Peers:
    """Those of the default process group; the first call on each process waits for the others."""
    group = dist.group.WORLD
    assert group is not None, "there is no process group"
    if group not in _PEERS:
        _PEERS[group] = Peers()
    return _PEERS[group]


def message(gone: Sequence[Peer], said: str) -> str:
    """For people; `said` is how the failure showed."""
    who = " and ".join(map(str, gone))
    return (
        f"{who} {'has' if len(gone) == 1 else 'have'} ended while the job was running: look at its own output for the cause. "
        "Under `torchrun --max-restarts` the job starts again, and `Checkpoints.load` goes on from the last checkpoint. "
        f"(Here it showed as: {said.splitlines()[0] if said else 'no message'})"
    )


def own_address() -> str:
    """Of the interface by which the job's master is reached; of this machine alone if there is none."""
    master = os.environ.get("MASTER_ADDR")
    if master is None:
        return "127.0.0.1"
    with contextlib.suppress(OSError):
        family, kind, _, _, where = socket.getaddrinfo(master, 1, socket.AF_INET, socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(where)
            return str(probe.getsockname()[0])
    return "127.0.0.1"


def close_in_forks(listening: socket.socket) -> None:
    """A forked data loader would keep the socket open after this process."""
    reference = weakref.ref(listening)

    def close() -> None:
        if (found := reference()) is not None:
            found.close()

    os.register_at_fork(after_in_child=close)
