"""Promise 3: the eliminated operator's output sampled [::k, ::k] is the original's, in the running network."""

from tests.conftest import Case
from tests.watch import error, grown, sampled


def test_first_larger_map_sampled_is_the_original_map(case: Case) -> None:
    """Up to the first larger map everything is equal; that map, sampled, is the original's."""
    for transition, run in case.watched:
        place = f"{case.name}, transition {transition.index}"
        for before, after in run:
            if (
                before.given.shape != after.given.shape
            ):  # a function in the forward code was operated
                assert error(sampled(after.given, before.given), before.given) < 1e-5, (
                    f"{place}: before {before.name}"
                )
                break
            assert after.given.equal(before.given), f"{place}: {before.name} is given other values"
            assert error(sampled(after.made, before.made), before.made) < 1e-5, (
                f"{place}: {before.name}"
            )
            if before.made.shape != after.made.shape:
                break
        else:
            raise AssertionError(f"{place}: no map is larger")


def test_every_operator_on_the_original_map_gives_the_original_values(case: Case) -> None:
    """Also shortcuts and parallel branches: where the same map comes in, the sampled original goes out."""
    for transition, run in case.watched:
        witnesses = 0
        for before, after in run:
            if before.given.dim() == 4 and before.given.equal(after.given):
                problem = f"{case.name}, transition {transition.index}: {before.name}"
                assert error(sampled(after.made, before.made), before.made) < 1e-5, problem
                witnesses += grown(before.made, after.made) != (1,) * before.made.dim()
        functions = [
            case.report[i].name
            for i in transition.layers
            if not is_module(case, case.report[i].name)
        ]
        assert witnesses or functions, (
            f"{case.name}, transition {transition.index}: no operator has changed"
        )


def is_module(case: Case, name: str) -> bool:
    return name in dict(case.original.named_modules())
