"""Values with other symbols in their sizes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import sympy
import torch
from torch import Tensor


def rename_symbols(val: Any, names: Mapping[sympy.Symbol, sympy.Symbol]) -> Any:
    """A fake tensor, symbolic int, or tuple of them, with other symbols in its sizes and strides; same example sizes.

    `SymInt.node`, `ShapeEnv.backed_var_to_val` (torch 2.13; `var_to_val` in 2.11), `var_to_range`, `var_to_range_sloc`,
    `var_to_sources`, `create_symintnode`.
    """
    if isinstance(val, tuple | list):
        return type(val)(rename_symbols(v, names) for v in val)
    if isinstance(val, torch.SymInt):
        return _rename_size(val, names)
    if not isinstance(val, Tensor) or not any(isinstance(n, torch.SymInt) for n in (*val.shape, *val.stride())):
        return val
    shape, stride = ([_rename_size(n, names) for n in sizes] for sizes in (val.shape, val.stride()))
    with val.fake_mode:  # type: ignore[attr-defined]
        return torch.empty_strided(shape, stride, dtype=val.dtype, device=val.device)


def _rename_size(size: int | torch.SymInt, names: Mapping[sympy.Symbol, sympy.Symbol]) -> int | torch.SymInt:
    if isinstance(size, int):
        return size
    node = size.node
    env, expression = node.shape_env, node.expr.xreplace(dict(names))
    examples = env.backed_var_to_val if hasattr(env, "backed_var_to_val") else env.var_to_val
    for old, new in names.items():
        if new not in examples:
            for table in (examples, env.var_to_range, env.var_to_range_sloc, env.var_to_sources):
                table[new] = table[old]
    return cast(int | torch.SymInt, env.create_symintnode(expression, hint=int(expression.xreplace(examples))))
