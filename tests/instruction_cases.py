"""A response that follows, and near misses that do not, for each of IFEval's kinds, with its arguments."""

from __future__ import annotations

from typing import Any

FEW, MANY = "less than", "at least"

# (kind, arguments, responses that follow, near misses)
CASES: list[tuple[str, dict[str, Any], list[str], list[str]]] = [
    (
        "keywords:existence",
        {"keywords": ["river", "Tea"]},
        ["TEA by the river.", "Two rivers of tea"],
        ["The river only.", "the a river"],
    ),
    (
        "keywords:frequency",
        {"keyword": "sea", "frequency": 2, "relation": MANY},
        ["Sea and sea", "Seas at the seaside"],
        ["The sea."],
    ),
    (
        "keywords:frequency",
        {"keyword": "sea", "frequency": 2, "relation": FEW},
        ["The sea.", "No water"],
        ["Sea and sea"],
    ),
    (
        "keywords:forbidden_words",
        {"forbidden_words": ["sea", "ship"]},
        ["Seaside shipping", "Nothing of it"],
        ["By the SEA.", "A ship"],
    ),
    (
        "keywords:letter_frequency",
        {"letter": "s", "let_frequency": 3, "let_relation": MANY},
        ["Sassy", "a s b S c s"],
        ["a ss"],
    ),
    (
        "keywords:letter_frequency",
        {"letter": "Q", "let_frequency": 2, "let_relation": FEW},
        ["A queen", "none"],
        ["Quick queen"],
    ),
    (
        "language:response_language",
        {"language": "de"},
        ["Der alte Bahnhof liegt am Rand der kleinen Stadt, und niemand weiß mehr, wann er gebaut wurde."],
        ["The old station lies at the edge of the small town, and nobody knows when it was built."],
    ),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 3, "relation": MANY},
        ["One here. Two here! Three here?", "Dr. Lee came. She sat. She left."],
        ["One here. Two here!", "Dr. Lee met Mr. Ross. They left."],
    ),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 2, "relation": FEW},
        ["It costs 3.50 dollars at 3 p.m. on Monday.", "no mark at all"],
        ["It rains. We stay."],
    ),
    (
        "length_constraints:number_paragraphs",
        {"num_paragraphs": 2},
        ["One\n***\nTwo", "***\nOne *** Two\n***"],
        ["One\n\nTwo", "One\n***\nTwo\n***\nThree", "One\n***\n***\nTwo"],
    ),
    (
        "length_constraints:number_words",
        {"num_words": 4, "relation": MANY},
        ["one two three four", "well-known one, two"],
        ["one two three", "one, two... three!"],
    ),
    (
        "length_constraints:number_words",
        {"num_words": 4, "relation": FEW},
        ["one two three"],
        ["one two three four"],
    ),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Then"},
        ["First.\n\nThen more.", 'First.\n\n"Then," she said.', "First.\n\nthen\n"],
        ["First.\n\nThenceforth more.", "Then one.\n\nTwo.", "First.\n\nThen more.\n\nThird.", "First.\nThen more."],
    ),
    (
        "detectable_content:number_placeholders",
        {"num_placeholders": 2},
        ["Dear [name], on [date]", "[][]"],
        ["Dear [name]", "Dear [name on date], (x)", "[na\nme] [date]"],
    ),
    (
        "detectable_content:postscript",
        {"postscript_marker": "P.S."},
        ["Bye\nP.S. more", "Bye p. s. more"],
        ["Bye\nPS more", "Bye\nP.S more"],
    ),
    (
        "detectable_content:postscript",
        {"postscript_marker": "P.P.S"},
        ["Bye\nP.P.S. more", "Bye\np. p. s more"],
        ["Bye\nP.S. more"],
    ),
    (
        "detectable_format:number_bullet_lists",
        {"num_bullets": 2},
        ["* one\n* two", "Here:\n- one\n  - two\nend", "* one\n**bold**\n* two"],
        ["* one", "* one\n* two\n* three", "1. one\n2. two"],
    ),
    (
        "detectable_format:constrained_response",
        {},
        ["My answer is yes.", "Well. My answer is maybe. Really."],
        ["My answer is Yes.", "yes", "My answer is no!"],
    ),
    (
        "detectable_format:number_highlighted_sections",
        {"num_highlights": 2},
        ["*one* and *two*", "**one** and *two*"],
        ["*one*", "** ** and *one*", "*one\ntwo* three"],
    ),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "Section", "num_sections": 2},
        ["Section 1\na\nSection 2\nb", "Section1 a Section 2 b Section 3"],
        ["Section 1\na", "SECTION 1\na\nSECTION 2\nb", "Section A\nSection B"],
    ),
    (
        "detectable_format:json_format",
        {},
        ['{"a": [1, 2]}', '```json\n{"a": 1}\n```', "```\n3\n```"],
        ["{'a': 1}", 'Here: {"a": 1}', '{"a": 1'],
    ),
    (
        "detectable_format:title",
        {},
        ["<<On tea>>\nText", "Text <<t>> text"],
        ["<On tea>", "<< >>", "<<On\ntea>>"],
    ),
    (
        "combination:two_responses",
        {},
        ["One******Two", "******\nOne\n******\nTwo\n******"],
        ["One******One", "One*****Two", "One******Two******Three", "One************Two"],
    ),
    (
        "combination:repeat_prompt",
        {"prompt_to_repeat": "Write about tea."},
        ["Write about tea. Tea is old.", "  write about TEA.\nYes"],
        ["Sure: Write about tea. Tea", "Write about tea"],
    ),
    (
        "startend:end_checker",
        {"end_phrase": "That is all."},
        ["Tea. That is all.", '"Tea. that is all."  '],
        ["That is all. Bye", "Tea. That is all"],
    ),
    ("startend:quotation", {}, ['"Tea"', '  "a" and "b"\n'], ['"Tea', "'Tea'", '"', 'Say "Tea"']),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": MANY},
        ["I saw NASA", "WELL-KNOWN and U.S."],
        ["nasa and ESA", "Ab Cd"],
    ),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": FEW},
        ["NASA only", "none"],
        ["NASA and ESA"],
    ),
    (
        "change_case:english_capital",
        {},
        ["THE OLD STATION LIES AT THE EDGE OF THE SMALL TOWN AND NOBODY USES IT."],
        ["THE OLD STATION LIES AT THE EDGE OF THE SMALL TOWN AND NOBODY USES it."],
    ),
    (
        "change_case:english_lowercase",
        {},
        ["the old station lies at the edge of the small town and nobody uses it."],
        [
            "The old station lies at the edge of the small town.",
            "der alte bahnhof liegt am rand der stadt und niemand nutzt ihn.",
        ],
    ),
    ("punctuation:no_comma", {}, ["No pause at all;", "1.000"], ["Well, no", "1,000"]),
]
