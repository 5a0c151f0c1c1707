"""Functions of torch that no trace can follow, and what is traced in their place: the same, with ops of our own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch.nn import functional

from autopar.ir.ctc import CTC_LOSS, ctc_loss_by

STAND_INS: Mapping[Any, Callable[..., Any]] = dict.fromkeys(
    (functional.ctc_loss, torch.ctc_loss), partial(ctc_loss_by, CTC_LOSS)
)
