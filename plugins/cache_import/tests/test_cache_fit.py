"""Who may be forked from which zygote."""

from __future__ import annotations

import pytest

from ol_cache_import.fit import why_unfit
from olcore.interfaces import Wanted, Wheel

NUMPY = Wheel(folder="numpy-2", modules=frozenset({"numpy"}))
PANDAS = Wheel(folder="pandas-2", modules=frozenset({"pandas"}))
NUMEXPR = Wheel(folder="numexpr-2", modules=frozenset({"numexpr"}))
CHARDET = Wheel(folder="chardet-5", modules=frozenset({"chardet"}))
REQUESTS = Wheel(folder="requests-2", modules=frozenset({"requests"}))
AUTH = Wheel(folder="google_auth-2", modules=frozenset({"google.auth"}))
CLOUD = Wheel(folder="google_cloud-1", modules=frozenset({"google.cloud"}))


def wanted(*wheels: Wheel, own: frozenset[str] = frozenset()) -> Wanted:
    return Wanted(handler="h", wheels=wheels, modules=own)


def fits(
    one: Wanted,
    *wheels: Wheel,
    loaded: tuple[str, ...] = (),
    missed: tuple[str, ...] = (),
) -> bool:
    return why_unfit(one, frozenset(wheel.folder for wheel in wheels), loaded, missed) is None


def test_a_zygote_with_the_handlers_wheels_or_fewer_is_fit() -> None:
    assert fits(wanted(NUMPY, PANDAS), NUMPY, PANDAS, loaded=("numpy", "pandas"))
    assert fits(wanted(NUMPY, PANDAS), NUMPY, loaded=("numpy",))
    assert fits(wanted(NUMPY))


def test_a_zygote_with_one_wheel_more_never_is() -> None:
    why = why_unfit(wanted(NUMPY), frozenset({"numpy-2", "pandas-2"}), (), ())
    assert why is not None
    assert "pandas-2" in why


def test_another_version_of_a_wheel_is_another_wheel() -> None:
    old = Wheel(folder="numpy-1", modules=NUMPY.modules)
    assert not fits(wanted(NUMPY), old)


def test_pandas_that_looked_for_numexpr_is_not_for_a_handler_that_has_it() -> None:
    zygote = {"loaded": ("numpy", "pandas"), "missed": ("numexpr", "bottleneck")}
    assert fits(wanted(NUMPY, PANDAS), NUMPY, PANDAS, **zygote)
    assert not fits(wanted(NUMPY, PANDAS, NUMEXPR), NUMPY, PANDAS, **zygote)


def test_requests_that_looked_for_chardet_is_not_for_a_handler_that_has_it() -> None:
    zygote = {"loaded": ("requests",), "missed": ("chardet", "simplejson")}
    assert fits(wanted(REQUESTS), REQUESTS, **zygote)
    assert not fits(wanted(REQUESTS, CHARDET), REQUESTS, **zygote)


def test_a_module_below_what_a_wheel_provides_counts_too() -> None:
    assert not fits(wanted(NUMPY, NUMEXPR), NUMPY, missed=("numexpr.utils",))


@pytest.mark.parametrize("name", ["simplejson", "requests"])
def test_a_file_of_the_handlers_own_hides_a_module_as_a_wheel_does(name: str) -> None:
    zygote = {"loaded": ("requests",), "missed": ("simplejson",)}
    assert fits(wanted(REQUESTS, own=frozenset({"lambda_func"})), REQUESTS, **zygote)
    assert not fits(wanted(REQUESTS, own=frozenset({name})), REQUESTS, **zygote)


def test_a_wheel_that_hides_one_of_pythons_own_modules_is_seen() -> None:
    backport = Wheel(folder="typing-3", modules=frozenset({"typing"}))
    assert not fits(wanted(NUMPY, backport), NUMPY, loaded=("typing", "numpy"))


def test_a_namespace_package_grows_but_is_not_there_when_it_was_missed() -> None:
    assert fits(wanted(AUTH, CLOUD), AUTH, loaded=("google", "google.auth"))
    assert not fits(wanted(AUTH, CLOUD), AUTH, loaded=("google.auth",), missed=("google.cloud",))
    assert not fits(wanted(NUMPY, CLOUD), NUMPY, loaded=("numpy",), missed=("google",))
