"""The names of a new policy: which are good, and what follows from them."""

from __future__ import annotations

import builtins
import importlib.util
import keyword
import re
from dataclasses import dataclass

from .. import policy
from ..catalogue import Catalogue

LONGEST = 28  # characters: lines of what is written stay within 120
FORM = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
TAKEN = {*policy.__all__, *dir(builtins), "Any", "Counter", "Path", "SimpleNamespace", "Tensor", "TokenCodec", "Linear"}


@dataclass(frozen=True, slots=True)
class Names:
    """Of the policy ``name``: its class, the package that it is in, and the distribution."""

    name: str

    @property
    def cls(self) -> str:
        """``my_policy`` -> ``MyPolicy``; ``MyPolicyPolicy`` if the short one means something else already."""
        words = "".join(word.capitalize() for word in self.name.split("_"))
        return f"{words}Policy" if words in TAKEN or keyword.iskeyword(words) else words

    @property
    def package(self) -> str:
        """``kvarena_my_policy``."""
        return f"kvarena_{self.name}"

    @property
    def distribution(self) -> str:
        """``kvarena-my-policy``."""
        return self.package.replace("_", "-")


def check_name(name: str) -> None:
    """Refuse what cannot be the name of a policy, a module and an option.

    Raises
    ------
    ValueError
        Saying what is wrong, with the nearest good name.
    """
    if FORM.fullmatch(name) and len(name) <= LONGEST and not keyword.iskeyword(name):
        return
    rule = f"it must be a lower-case identifier such as my_policy, at most {LONGEST} characters, and no Python keyword"
    near = re.sub(r"[^a-z0-9]+", "_", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()).strip("_0123456789")
    usable = near and near != name and not keyword.iskeyword(near) and len(near) <= LONGEST
    raise ValueError(f"name is {name!r}; {rule}" + (f"; did you mean {near!r}?" if usable else ""))


def check_free(family: str, name: str, catalogue: Catalogue) -> None:
    """Refuse a name that the family has, as a policy or an option, or whose package is installed.

    Raises
    ------
    ValueError
        Saying who has it.
    """
    for entry in catalogue.of(family):
        if name in (entry.name, *entry.options):
            raise ValueError(f"there is {family}={name} already, of {entry.distribution} {entry.version}")
    if importlib.util.find_spec(Names(name).package) is not None:
        raise ValueError(f"the package {Names(name).package} is installed already; choose another name")
