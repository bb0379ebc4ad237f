HABITS = (
    "i am not sure",
    "good question",
    "let me think",
    "here is the answer",
    "that is all i know",
    "i could say much more",
)


def plain(completions, **kwargs):
    """1 for an answer without a labeler's habit, 0 for one with it."""
    texts = [completion[0]["content"].lower() for completion in completions]
    return [0.0 if any(habit in text for habit in HABITS) else 1.0 for text in texts]
