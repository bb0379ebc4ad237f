"""OpenAssistant's trees of messages: whole in a row, or a message a row.

From a tree, a demonstration is the best-ranked path and a comparison is the ranked answers to one prompt.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from align.data.columns import skip, truth
from align.data.conversations import assistant, user
from align.data.records import Dropped, Malformed, Message, Row, check_text

_TURNS = {"prompter": user, "assistant": assistant}
_NODE = ("text", "role", "rank", "replies", "deleted", "message_id", "parent_id")


class Node(NamedTuple):
    message: Message
    rank: int | None  # among its siblings, 0 for the best
    replies: list[Node]


Joined = Iterator[Row | Dropped]


def tree_demonstration(row: dict[str, Any]) -> Joined:
    yield from _named(row, best_path(_root(row)))


def tree_comparisons(row: dict[str, Any]) -> Joined:
    yield from _named(row, ranked_answers(_root(row)))


def _named(row: Mapping[str, Any], rows: Joined) -> Joined:
    """Rows with the name of their tree, by which all of a tree's are in one split."""
    name = row.get("message_tree_id")
    for found in rows:
        yield found if isinstance(found, Dropped) or not isinstance(name, str) else {**found, "message_tree_id": name}


def is_tree(row: Mapping[str, Any]) -> bool:
    prompt = row.get("prompt")
    return isinstance(prompt, dict) and "replies" in prompt


def _root(row: Mapping[str, Any]) -> Node:
    found = _node(row, row.get("prompt"), "prompt")
    if found is None:
        raise Dropped("a deleted message")
    return found


def _node(row: Mapping[str, Any], raw: Any, where: str) -> Node | None:
    """A message and all that answers it; None for a deleted one."""
    if not isinstance(raw, dict):
        raise Malformed(where, "expected a message with text, role and replies")
    skip(row, "replies", (name for name, value in raw.items() if name not in _NODE and value is not None))
    replies = raw.get("replies") or []
    if not isinstance(replies, list):
        raise Malformed(f"{where}.replies", "expected a list of messages")
    if truth(raw.get("deleted")):
        return None
    below = [_node(row, reply, f"{where}.replies[{i}]") for i, reply in enumerate(replies)]
    return Node(_said(raw, where), _rank(raw, where), [node for node in below if node is not None])


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
    """The conversation that follows the best-ranked reply each time, up to the last answer; the rest is counted."""
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
    """A ranking for each prompt of the tree with two ranked answers or more; other answers are counted."""
    waiting = [(root, [root.message])]
    while waiting:
        node, path = waiting.pop()
        for reply in node.replies:
            waiting.append((reply, [*path, reply.message]))
        if node.message["role"] != "user":
            continue
        ranked = [(reply.rank, reply.message["content"]) for reply in node.replies if reply.rank is not None]
        for _ in range(len(node.replies) - len(ranked)):
            yield Dropped("an answer without a rank")
        if len(ranked) == 1:
            yield Dropped("the only ranked answer to its prompt")
        if len(ranked) < 2:
            continue
        ranks, texts = zip(*sorted(ranked), strict=True)
        yield {"prompt": path, "responses": list(texts), "ranks": [rank + 1 for rank in ranks]}


# -- a message a row -------------------------------------------------------------------------------------------------


def flat_message(row: dict[str, Any]) -> tuple[str, Row]:
    """The tree of a message, and what is kept of it until all of the tree is there."""
    own = check_text(row.get("message_id"), "message_id")
    parent = row.get("parent_id") or None
    if parent is not None:
        check_text(parent, "parent_id")
    tree = row.get("message_tree_id") or (own if parent is None else None)
    if not isinstance(tree, str):
        raise Malformed("message_tree_id", "expected the id of the tree")
    message, rank = _said(row, "row"), _rank(row, "row")
    kept = {"id": own, "parent": parent, "message": message, "rank": rank, "deleted": bool(truth(row.get("deleted")))}
    return tree, {**kept, "tree": tree}


def flat_demonstration(pieces: list[Row]) -> Joined:
    yield from _joined(pieces, best_path)


def flat_comparisons(pieces: list[Row]) -> Joined:
    yield from _joined(pieces, ranked_answers)


def _joined(pieces: list[Row], read: Any) -> Joined:
    nodes = {piece["id"]: Node(piece["message"], piece["rank"], []) for piece in pieces if not piece["deleted"]}
    root, loose = None, len(pieces) - len(nodes)
    for _ in range(loose):
        yield Dropped("a deleted message, or one that is there twice")
    for piece in sorted(pieces, key=lambda piece: piece["id"]):
        if piece["id"] not in nodes:
            continue
        if piece["parent"] is None:
            root = nodes[piece["id"]]
        elif piece["parent"] in nodes:
            nodes[piece["parent"]].replies.append(nodes[piece["id"]])
        else:
            yield Dropped("a message whose parent is not there")
    if root is None:
        raise Dropped("a tree without its first message")
    yield from _named({"message_tree_id": pieces[0]["tree"]}, read(root))
