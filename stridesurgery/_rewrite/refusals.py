"""Says in a refusal why a surgery is not possible, and the way out."""

from torch import nn

from stridesurgery._analysis import Analysis
from stridesurgery._rewrite.plan import Plan
from stridesurgery._rewrite.positions import knows_positions
from stridesurgery._trace import RewrittenModel
from stridesurgery.errors import GridError, TraceError


def way_out(model: nn.Module, planned: Plan, refusal: GridError) -> str:
    """Return the sentence that a refusal goes on with, if positions could follow."""
    cause, hint = refusal.__cause__, ""
    if isinstance(model, RewrittenModel) and isinstance(cause, TraceError) and cause.fixed:
        hint = (
            "In a graph it cannot follow any more: operate the model first, with "
            "positions='resample', and make the graph or the features of the result"
        )
    elif planned.surgery.positions == "refuse" and knows_positions(model):
        hint = "positions='resample' lets tables of positions, windows and sizes follow"
    end = " " if str(refusal).endswith(".") else ". "
    return end + hint if hint else ""


def not_possible(planned: Plan, problem: TraceError, analysis: Analysis) -> GridError:
    """Return the refusal of a surgery whose draft does not run."""
    if problem.fixed:
        why = f"a size is fixed by {', '.join(problem.fixed)}"
    else:
        target = "phases as its batch" if planned.phases else "larger maps"
        why = f"the model does not run on the {target}"
    hint = ""
    if problem.fixed and all(analysis.is_in_head(name) for name in problem.fixed):
        hint = ". Only the head fixes it: operate on `features(model)`, which leaves the head out"
    refusal = GridError(f"{planned.surgery.name} is not possible: {why}. {problem}{hint}")
    refusal.__cause__ = problem
    return refusal
