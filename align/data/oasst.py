"""Layouts of OpenAssistant's message trees: a whole tree per row, or a message per row.

From a tree, the demonstration is the best-ranked path, and a comparison is the ranked answers to
one prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from align.data.columns import skip, truth
from align.data.conversations import assistant, user
from align.data.records import Dropped, Malformed, Message, Row, check_text

_TURNS = {"prompter": user, "assistant": assistant}
_DELETED, _BELOW_DELETED = "a deleted message", "a message below a deleted one"
_NODE = ("text", "role", "rank", "replies", "deleted", "message_id", "parent_id")


class Node(NamedTuple):
    message: Message
    rank: int | None  # among its siblings, 0 for the best
    replies: list[Node]


Joined = Iterator[Row | Dropped]


def tree_demonstration(row: dict[str, Any]) -> Joined:
    yield from _tree(row, best_path)


def tree_comparisons(row: dict[str, Any]) -> Joined:
    yield from _tree(row, ranked_answers)


def _tree(row: Mapping[str, Any], read: Callable[[Node], Joined]) -> Joined:
    deleted: list[Dropped] = []
    root = _node(row, row.get("prompt"), "prompt", deleted)
    yield from deleted
    if root is not None:
        yield from _named(row, read(root))


def _named(row: Mapping[str, Any], rows: Joined) -> Joined:
    """Add the tree's id to its rows, so that all rows of a tree are in one split."""
    name = row.get("message_tree_id")
    for found in rows:
        yield (
            found
            if isinstance(found, Dropped) or not isinstance(name, str)
            else {**found, "message_tree_id": name}
        )


def is_tree(row: Mapping[str, Any]) -> bool:
    prompt = row.get("prompt")
    return isinstance(prompt, dict) and "replies" in prompt


def _node(
    row: Mapping[str, Any], raw: Any, where: str, deleted: list[Dropped], *, below: bool = False
) -> Node | None:
    """Return a message with its replies; None if it is deleted or `below` a deleted message.

    `deleted` gets a `Dropped` for each such message.
    """
    if not isinstance(raw, dict):
        raise Malformed(where, "expected a message with text, role and replies")
    skip(
        row,
        "replies",
        (name for name, value in raw.items() if name not in _NODE and value is not None),
    )
    replies = raw.get("replies") or []
    if not isinstance(replies, list):
        raise Malformed(f"{where}.replies", "expected a list of messages")
    lost = below or bool(truth(raw.get("deleted")))
    if lost:
        deleted.append(Dropped(_BELOW_DELETED if below else _DELETED))
    nodes = [
        _node(row, reply, f"{where}.replies[{i}]", deleted, below=lost)
        for i, reply in enumerate(replies)
    ]
    if lost:
        return None
    return Node(_said(raw, where), _rank(raw, where), [node for node in nodes if node is not None])


def _said(raw: Mapping[str, Any], where: str) -> Message:
    role = raw.get("role")
    if not isinstance(role, str) or role not in _TURNS:
        raise Malformed(f"{where}.role", f"expected prompter or assistant, got {role!r}")
    return _TURNS[role](check_text(raw.get("text"), f"{where}.text"))


def _rank(raw: Mapping[str, Any], where: str) -> int | None:
    rank = raw.get("rank")
    if rank in (None, ""):
        return None
    if isinstance(rank, bool) or not str(rank).removesuffix(".0").isdecimal():
        raise Malformed(f"{where}.rank", f"expected a whole number, 0 for the best, got {rank!r}")
    return int(float(rank))


def best_path(root: Node) -> Joined:
    """Yield the conversation that follows the best-ranked replies, up to the last answer.

    Yield a `Dropped` for each other message.
    """
    path, node, beside = [root], root, 0
    while node.replies:
        best = min(node.replies, key=lambda reply: (reply.rank is None, reply.rank or 0))
        beside += sum(_size(reply) for reply in node.replies if reply is not best)
        node = best
        path.append(node)
    if path[-1].message["role"] == "user" and len(path) > 1:
        path.pop()
        beside += 1
    for _ in range(beside):
        yield Dropped("a message beside the best-ranked path")
    if path[-1].message["role"] != "assistant":
        raise Dropped("a prompt without an answer")
    yield {"messages": [node.message for node in path]}


def _size(node: Node) -> int:
    return 1 + sum(map(_size, node.replies))


def ranked_answers(root: Node) -> Joined:
    """Yield a ranking for each prompt of the tree with at least two ranked answers.

    Yield a `Dropped` for each answer that is in no ranking.
    """
    waiting = [(root, [root.message])]
    while waiting:
        node, path = waiting.pop()
        for reply in node.replies:
            waiting.append((reply, [*path, reply.message]))
        if node.message["role"] != "user":
            continue
        ranked = [
            (reply.rank, reply.message["content"])
            for reply in node.replies
            if reply.rank is not None
        ]
        for _ in range(len(node.replies) - len(ranked)):
            yield Dropped("an answer without a rank")
        if len(ranked) == 1:
            yield Dropped("the only ranked answer to its prompt")
        if len(ranked) < 2:
            continue
        ranks, texts = zip(*sorted(ranked), strict=True)
        yield {"prompt": path, "responses": list(texts), "ranks": [rank + 1 for rank in ranks]}


# -- a message per row -----------------------------------------------------------------------------


def flat_message(row: dict[str, Any]) -> tuple[str, Row]:
    """Return the id of a message's tree, and the fields to keep until the tree is complete."""
    own = check_text(row.get("message_id"), "message_id")
    parent = row.get("parent_id") or None
    if parent is not None:
        check_text(parent, "parent_id")
    tree = row.get("message_tree_id") or (own if parent is None else None)
    if not isinstance(tree, str):
        raise Malformed("message_tree_id", "expected the id of the tree")
    kept = {"id": own, "parent": parent, "tree": tree}
    if truth(row.get("deleted")):  # a deleted message may have no text
        return tree, {**kept, "message": None, "rank": None}
    return tree, {**kept, "message": _said(row, "row"), "rank": _rank(row, "row")}


def flat_demonstration(pieces: list[Row]) -> Joined:
    yield from _joined(pieces, best_path)


def flat_comparisons(pieces: list[Row]) -> Joined:
    yield from _joined(pieces, ranked_answers)


def _joined(pieces: list[Row], read: Callable[[Node], Joined]) -> Joined:
    """Build the tree of the pieces and read it; yield a `Dropped` for each message outside it."""
    found, twice = _by_id(pieces)
    for _ in range(twice):
        yield Dropped("a message that is there twice")
    replies: dict[str | None, list[str]] = {}
    for name, piece in found.items():
        replies.setdefault(piece["parent"], []).append(name)
    whole = {name for name, piece in found.items() if piece["message"] is not None}

    roots = [name for name in replies.get(None, []) if name in whole]
    tree = pieces[0]["tree"]
    root = tree if tree in roots else roots[0] if roots else None
    for _ in range(len(found) - len(whole)):
        yield Dropped(_DELETED)
    reached = {root, *_below(root, replies, whole)} if root is not None else set()
    for name, reason in _tops_outside(root, roots, found, replies, whole):
        lost = [name, *_below(name, replies, whole)]
        reached.update(lost)
        for _ in lost:
            yield Dropped(reason)
    for _ in whole - reached:
        yield Dropped("a message that answers itself, or one below it")
    if root is None:
        raise Dropped("a tree without its first message")

    nodes = {name: Node(found[name]["message"], found[name]["rank"], []) for name in whole}
    for name in (root, *_below(root, replies, whole)):
        nodes[name].replies.extend(
            nodes[reply] for reply in replies.get(name, []) if reply in whole
        )
    yield from _named({"message_tree_id": tree}, read(nodes[root]))


def _by_id(pieces: list[Row]) -> tuple[dict[str, Row], int]:
    """Return the pieces by id, and how many others have an id that was there already."""
    found: dict[str, Row] = {}
    for piece in sorted(pieces, key=lambda piece: (piece["id"], repr(piece))):
        found.setdefault(piece["id"], piece)
    return found, len(pieces) - len(found)


def _tops_outside(
    root: str | None,
    roots: list[str],
    found: Mapping[str, Row],
    replies: Mapping[str | None, list[str]],
    whole: set[str],
) -> Iterator[tuple[str, str]]:
    """Yield the first message of each branch that is not in the tree, and the reason."""
    for name in roots:
        if name != root:
            yield name, "a message of a second tree in one"
    for name, piece in found.items():
        if name not in whole:
            for reply in replies.get(name, []):
                if reply in whole:
                    yield reply, _BELOW_DELETED
        elif piece["parent"] is not None and piece["parent"] not in found:
            yield name, "a message whose parent is not there"


def _below(name: str, replies: Mapping[str | None, list[str]], whole: set[str]) -> list[str]:
    """Return all messages below one, without deleted messages and those below them.

    The message must not be part of a circle.
    """
    found = [reply for reply in replies.get(name, []) if reply in whole]
    for each in found:  # the list grows during the loop
        found += [reply for reply in replies.get(each, []) if reply in whole]
    return found
