"""Records of options. A command takes a record, and the command line shows the fields of the record as options."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any

__all__ = ["expanded"]


def expanded(command: Callable[..., None]) -> Callable[..., None]:
    """Show each record in a command's signature as its fields, which typer reads as options.

    A record is a parameter that is annotated with a dataclass. Its fields are keywords with defaults and with typer's
    annotations. The command is called with a record that holds the values that were typed.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True, kw_only=True)
        ... class Options:
        ...     lr: float = 0.1
        >>> @expanded
        ... def train(name: str, *, options: Options, quiet: bool = False) -> None:
        ...     print(name, options)
        >>> inspect.signature(train)
        <Signature (name: str, *, lr: float = 0.1, quiet: bool = False)>
        >>> train(name="rae", lr=0.2, quiet=True)
        rae Options(lr=0.2)
    """
    records: dict[str, Any] = {}
    shown: list[inspect.Parameter] = []
    for parameter in inspect.signature(command).parameters.values():
        if is_dataclass(parameter.annotation):
            records[parameter.name] = parameter.annotation
            shown.extend(inspect.signature(records[parameter.name]).parameters.values())
        else:
            shown.append(parameter)

    @functools.wraps(command)
    def run(**values: Any) -> None:
        for name, record in records.items():
            values[name] = record(**{field.name: values.pop(field.name) for field in fields(record)})
        command(**values)

    run.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in shown}
    return run
