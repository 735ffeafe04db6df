"""When a chosen K is taken back."""

import pytest

from balance.probe.findings import Conclusion
from balance.probe.intervals import Verdict
from balance.probe.sentences import veto

GAIN, LOSS, UNKNOWN = Verdict.gain, Verdict.loss, Verdict.not_resolved


def conclusion(rule: str, *verdicts: Verdict, k: int = 8) -> Conclusion:
    by_reading = dict(zip(("logistic", "knn", "knn, selecting space"), verdicts, strict=True))
    return Conclusion(
        arm=f"neighbours k={k}", against=f"the {rule}", against_rule=rule, k=k, agree=False, verdict=None,
        by_reading=by_reading, words="",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("rule", "verdicts", "words"),
    [
        ("random", (GAIN, GAIN, UNKNOWN), None),
        ("random", (GAIN, LOSS, UNKNOWN), "a loss against the random by k-NN vote"),
        ("seeds", (UNKNOWN, UNKNOWN, LOSS), "a loss against the seeds by k-NN vote in the selecting space"),
        ("hierarchical_kmeans", (LOSS, LOSS, UNKNOWN), None),
        ("hierarchical_kmeans", (LOSS, LOSS, LOSS), "a loss against the hierarchical_kmeans by linear, k-NN vote"),
        ("pool", (LOSS, LOSS, LOSS), None),  # larger, so no rival
    ],
)
def test_a_loss_takes_the_choice_back(rule: str, verdicts: tuple[Verdict, ...], words: str | None) -> None:
    found = veto([conclusion(rule, GAIN, GAIN, GAIN, k=4), conclusion(rule, *verdicts)], 8)
    assert (found is None) == (words is None)
    if found is not None:
        assert found.startswith("K = 8 is best on held-out seeds, but ")
        assert str(words) in found
