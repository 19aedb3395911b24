"""What the evening of a night in rollout goes by and leaves: names of its metrics, and the looks of an A/B test."""

GROUP = "rollout"
HARM, CHAMPION_LOSS, CHALLENGER_LOSS = "harm", "champion_loss", "challenger_loss"
SHIFT, DISAGREEING = "shift", "disagreeing"
GUARDRAIL = "guardrail_"


def stated_looks(nights: int, looks: int) -> list[int]:
    """Nights with mature labels at which a test of so many nights may declare a winner."""
    return sorted({max(2, round(nights * number / looks)) for number in range(1, looks + 1)})
