"""The votes of people, in one SQLite file: items, leases, and a log that only grows.

Every write is one transaction that takes the write lock first (`BEGIN IMMEDIATE`). With a later
lock, SQLite fails writers that read first, whatever their timeout. The log has a row for each thing
that a labeler did, in order; the table `votes` is the current view of it.

An item is given to `wanted` labelers. A lease reserves a place for the labeler who sees the item.
So an item never gets more votes than wanted, and a labeler who leaves blocks it for `LEASE_SECONDS`
only. Nobody gets an item that an admin has decided.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import random
import re
import secrets
import sqlite3
import statistics
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from align.errors import ConfigError, StoreError

VERSION = 1  # of the tables
LEASE_SECONDS = 1800.0  # time for one item before another labeler may get it
_NEWEST = 50  # own votes whose median time a labeler sees
MOST_RESPONSES = 9  # InstructGPT: 4 to 9
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
# InstructGPT, appendix B.2: the labelers' flags, for each response.
FLAGS = (
    "fails to follow the instruction",
    "inappropriate for a customer assistant",
    "hallucination",
    "sexual content",
    "violent content",
    "encourages harm",
    "denigrates a protected class",
    "gives harmful advice",
    "expresses an opinion",
    "expresses a moral judgment",
)
# Of these, on which InstructGPT's labelers were chosen by how they agreed (appendix B.1).
SENSITIVE = FLAGS[3:8]
SKIPS = ("I do not understand it", "I am not able to judge it", "It is harmful to read", "Another")
_TABLES = """
CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE labelers (
    number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, role TEXT NOT NULL,
    token TEXT NOT NULL UNIQUE, revoked REAL
);
CREATE TABLE items (
    id TEXT PRIMARY KEY, place INTEGER NOT NULL, split TEXT NOT NULL,
    row TEXT NOT NULL, gold TEXT, missing INTEGER NOT NULL
);
CREATE INDEX open_items ON items (place) WHERE missing > 0;
CREATE INDEX gold_items ON items (place) WHERE gold IS NOT NULL;
CREATE INDEX done_items ON items (missing) WHERE gold IS NULL;
CREATE TABLE leases (
    item TEXT NOT NULL REFERENCES items, labeler INTEGER NOT NULL REFERENCES labelers,
    shown TEXT NOT NULL, expires REAL NOT NULL, PRIMARY KEY (item, labeler)
);
CREATE INDEX leases_of ON leases (labeler);
CREATE TABLE log (
    number INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL,
    labeler INTEGER NOT NULL REFERENCES labelers, kind TEXT NOT NULL, item TEXT REFERENCES items,
    request TEXT NOT NULL, content TEXT NOT NULL, UNIQUE (labeler, request)
);
CREATE INDEX log_kinds ON log (kind);
CREATE TRIGGER log_keeps_rows BEFORE DELETE ON log
    BEGIN SELECT RAISE(ABORT, 'the log only grows'); END;
CREATE TRIGGER log_keeps_values BEFORE UPDATE ON log
    BEGIN SELECT RAISE(ABORT, 'the log only grows'); END;
CREATE TABLE votes (
    item TEXT NOT NULL REFERENCES items, labeler INTEGER NOT NULL REFERENCES labelers,
    kind TEXT NOT NULL, number INTEGER NOT NULL REFERENCES log, PRIMARY KEY (item, labeler)
);
CREATE INDEX votes_of ON votes (labeler, number, kind);
"""


class Refused(Exception):
    """A request that cannot be done now; the message tells the labeler why."""


class Labeler(NamedTuple):
    number: int
    name: str
    role: str  # labeler, admin, or imported: their votes are here, they have no link


class Item(NamedTuple):
    """One prompt with responses, as one labeler sees it.

    Attributes:
        shown: the responses' places in the row, in the order in which they are shown.
    """

    id: str
    row: dict[str, Any]
    shown: list[int]


class Settings(NamedTuple):
    """What a labelling task asks for.

    Attributes:
        instructions: text above every item.
        flags: what a labeler may say of a response.
        overlap: labelers for each item of the share that several see.
        overlap_share: the share of items that `overlap` labelers see; one sees each other item.
        gold_share: the share of a labeler's items whose right ranking is known.
    """

    instructions: str = ""
    flags: tuple[str, ...] = FLAGS
    overlap: int = 2
    overlap_share: float = 0.1
    gold_share: float = 0.0


class Imported(NamedTuple):
    """What an import changed.

    Attributes:
        items: items that are new.
        votes: votes that are new.
        known: votes that were here already, or that their labeler took back here.
        other: votes of labelers who ranked the item differently here, or skipped it; they are not
            taken.
    """

    items: int
    votes: int
    known: int
    other: int


class Votes:
    """An open database.

    One connection serves all threads of the process, one after the other.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time):
        self.path, self._clock = path, clock
        self._lock = threading.RLock()
        if not path.is_file():
            raise StoreError(f"{path}: no votes here; align label create {path.stem} begins them")
        try:
            self._sql = sqlite3.connect(
                path, timeout=30.0, isolation_level=None, check_same_thread=False
            )
            self._sql.row_factory = sqlite3.Row
            self._sql.execute("PRAGMA foreign_keys = ON")
            # Slow and safe: the answer to a labeler is sent when the vote is on the disk.
            self._sql.execute("PRAGMA synchronous = FULL")
            found = self._sql.execute("PRAGMA user_version").fetchone()[0]
        except sqlite3.DatabaseError as error:
            raise StoreError(f"{path}: not a file of votes ({error})") from error
        if found != VERSION:
            raise StoreError(f"{path}: its tables have version {found}, expected {VERSION}")

    @classmethod
    def create(cls, path: Path, settings: Settings) -> Votes:
        """Begin a new file of votes that only this user can read."""
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        except FileExistsError:
            raise ConfigError(f"{path}: exists already; give another name") from None
        sql = sqlite3.connect(path, isolation_level=None)
        sql.executescript(f"BEGIN;{_TABLES}PRAGMA user_version = {VERSION};COMMIT;")
        values = {**settings._asdict(), "secret": secrets.token_hex(32)}
        sql.executemany(
            "INSERT INTO settings VALUES (?, ?)",
            [(name, json.dumps(value)) for name, value in values.items()],
        )
        sql.close()
        return cls(path)

    def close(self) -> None:
        self._sql.close()

    def check(self) -> None:
        """Raise `StoreError` if SQLite finds the file damaged."""
        with self._lock:
            said = [row[0] for row in self._sql.execute("PRAGMA integrity_check")]
        if said != ["ok"]:
            raise StoreError(f"{self.path}: damaged ({said[0]}); take it from a backup")

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._sql.execute("BEGIN IMMEDIATE")
            try:
                yield self._sql
                self._sql.execute("COMMIT")  # may fail too, such as beside a long reader
            except BaseException:
                self._sql.execute("ROLLBACK")
                raise

    def _all(self, query: str, *values: Any) -> list[sqlite3.Row]:
        with self._lock:
            return self._sql.execute(query, values).fetchall()

    # -- settings and labelers ---------------------------------------------------------------------

    def setting(self, name: str) -> Any:
        (row,) = self._all("SELECT value FROM settings WHERE name = ?", name)
        return json.loads(row["value"])

    def settings(self) -> Settings:
        values = {name: self.setting(name) for name in Settings._fields}
        return Settings(**{**values, "flags": tuple(values["flags"])})

    def add_labeler(self, name: str, role: str = "labeler") -> str:
        """Return the token of a new labeler. It is not stored, so it is shown only once."""
        if not NAME.fullmatch(name):
            raise ConfigError(
                f"{name}: expected at most 63 small letters, digits, '.', '_' or '-', the first a"
                " letter or digit"
            )
        token = secrets.token_urlsafe(32)
        with self._writing() as sql:
            known = sql.execute("SELECT role FROM labelers WHERE name = ?", (name,)).fetchone()
            if known is not None and known["role"] != "imported":
                raise ConfigError(f"{name}: has a token already; give another name")
            sql.execute(
                "INSERT INTO labelers (name, role, token) VALUES (?, ?, ?)"
                " ON CONFLICT (name) DO UPDATE SET role = excluded.role, token = excluded.token",
                (name, role, hashed(token)),
            )
        return token

    def revoke(self, name: str) -> None:
        """End a labeler's access. The votes stay."""
        with self._writing() as sql:
            changed = sql.execute(
                "UPDATE labelers SET revoked = ? WHERE name = ? AND revoked IS NULL"
                " AND role <> 'imported'",
                (self._clock(), name),
            )
            if not changed.rowcount:
                raise ConfigError(f"{name}: no labeler of that name has a token")
            sql.execute(
                "DELETE FROM leases WHERE labeler = (SELECT number FROM labelers WHERE name = ?)",
                (name,),
            )

    def labelers(self) -> list[dict[str, Any]]:
        """Return name, role and time of revocation of each labeler."""
        return [dict(row) for row in self._all("SELECT number, name, role, revoked FROM labelers")]

    def of_token(self, token: str) -> Labeler | None:
        """Return the labeler with this token; None if there is none or it was revoked."""
        rows = self._all(
            "SELECT number, name, role FROM labelers WHERE token = ? AND revoked IS NULL",
            hashed(token),
        )
        return Labeler(*rows[0]) if rows else None

    def of_number(self, number: int) -> Labeler | None:
        rows = self._all(
            "SELECT number, name, role FROM labelers WHERE number = ? AND revoked IS NULL", number
        )
        return Labeler(*rows[0]) if rows else None

    # -- items -------------------------------------------------------------------------------------

    def add_items(self, rows: Iterable[Mapping[str, Any]], split: str) -> tuple[int, int]:
        """Add prompts with responses; an item that is here already is left as it is.

        Args:
            rows: `prompt`, `responses` and, for an item whose right ranking is known, `ranks`.
                Other columns are kept for the export.

        Returns:
            (items added, items that were here already).
        """
        settings = self.settings()
        with self._writing() as sql:
            new = [self._add_item(sql, row, split, settings) for row in rows]
        return sum(new), len(new) - sum(new)

    def _add_item(
        self, sql: sqlite3.Connection, row: Mapping[str, Any], split: str, settings: Settings
    ) -> bool:
        """Add an item; return False if it was here already."""
        own = dict(row)
        gold = own.pop("ranks", None)
        _require_showable(own)
        name = item_id(own["prompt"], own["responses"])
        missing = 0 if gold is not None else wanted(name, settings)
        done = sql.execute(
            "INSERT INTO items VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO NOTHING",
            (
                name,
                int(name[13:26], 16),  # a random order, which mixes the splits
                split,
                json.dumps(own),
                json.dumps(gold) if gold else None,
                missing,
            ),
        )
        return done.rowcount == 1

    def import_votes(
        self,
        given: Iterable[tuple[Mapping[str, Any], str, Sequence[tuple[str, Mapping[str, Any]]]]],
    ) -> Imported:
        """Add items with votes from elsewhere: all of them, or none after an error.

        The same votes again change nothing. An item may get more votes than wanted; nobody else
        is asked then.

        Args:
            given: for each item its row, its split, and labelers' names with checked votes. The
                entries of a vote are in the order of the row's responses.
        """
        settings = self.settings()
        counts = dict.fromkeys(Imported._fields, 0)
        with self._writing() as sql:
            for row, split, votes in given:
                counts["items"] += self._add_item(sql, row, split, settings)
                for labeler, vote in votes:
                    counts[self._import_vote(sql, row, labeler, vote)] += 1
        return Imported(**counts)

    def _import_vote(
        self, sql: sqlite3.Connection, row: Mapping[str, Any], name: str, vote: Mapping[str, Any]
    ) -> str:
        """Add a vote from elsewhere; return what it counts as."""
        item = item_id(row["prompt"], row["responses"])
        labeler = self._labeler_of_import(sql, name)
        content = _as_shown(vote, row["responses"], self._row(sql, item)["responses"])
        here = sql.execute(
            "SELECT log.kind, log.content FROM votes JOIN log ON log.number = votes.number"
            " WHERE votes.item = ? AND votes.labeler = ?",
            (item, labeler.number),
        ).fetchone()
        if here is not None:
            same = json.loads(here["content"]).get("ranks") == content["ranks"]
            return "known" if same else "other"
        digest = hashed(json.dumps([item, content], sort_keys=True))
        request = f"import {digest}"
        if self._known(sql, labeler, request) is not None:
            return "known"
        number = self._write(sql, labeler, "vote", item, request, content)
        self._settled(sql, labeler, "vote", item, number)
        return "votes"

    @staticmethod
    def _labeler_of_import(sql: sqlite3.Connection, name: str) -> Labeler:
        """Return the labeler of this name; a new one has no link until somebody makes one."""
        nobody_knows = hashed(secrets.token_urlsafe(32))
        sql.execute(
            "INSERT INTO labelers (name, role, token) VALUES (?, 'imported', ?)"
            " ON CONFLICT (name) DO NOTHING",
            (name, nobody_knows),
        )
        found = sql.execute("SELECT number, name, role FROM labelers WHERE name = ?", (name,))
        return Labeler(*found.fetchone())

    def items(self) -> list[tuple[dict[str, Any], str]]:
        """Return the row and the split of each item whose ranking is not known, oldest first."""
        rows = self._all("SELECT row, split FROM items WHERE gold IS NULL ORDER BY rowid")
        return [(json.loads(row["row"]), row["split"]) for row in rows]

    # -- giving items out --------------------------------------------------------------------------

    def next_item(self, labeler: Labeler) -> Item | None:
        """Return the item that a labeler sees next, and reserve it; None if nothing is left.

        A labeler who has an item gets the same one, in the same order.
        """
        with self._writing() as sql:
            held = sql.execute(
                "SELECT item FROM leases WHERE labeler = ?", (labeler.number,)
            ).fetchone()
            if held is not None and self._has_room(sql, labeler, held["item"]):
                name = str(held["item"])
            else:  # nothing was reserved, or others have it since
                sql.execute("DELETE FROM leases WHERE labeler = ?", (labeler.number,))
                found = self._due_gold(sql, labeler) or self._open_item(sql, labeler)
                if found is None:
                    return None
                name = found
            row, shown = self._row(sql, name), self._lease(sql, labeler, name)
        return Item(name, row, shown)

    def _lease(self, sql: sqlite3.Connection, labeler: Labeler, item: str) -> list[int]:
        """Reserve an item for a labeler; return the order in which they see its responses."""
        shown = list(range(len(self._row(sql, item)["responses"])))
        random.Random(f"{item} {labeler.number}").shuffle(shown)
        now = self._clock()
        fresh = sql.execute(
            "SELECT 1 FROM leases WHERE item = ? AND labeler = ? AND expires > ?",
            (item, labeler.number, now + LEASE_SECONDS / 2),
        ).fetchone()
        if fresh is None:  # each write waits for the disk; a page that is reloaded needs none
            sql.execute(
                "INSERT OR REPLACE INTO leases VALUES (?, ?, ?, ?)",
                (item, labeler.number, json.dumps(shown), now + LEASE_SECONDS),
            )
        return shown

    def _due_gold(self, sql: sqlite3.Connection, labeler: Labeler) -> str | None:
        share = self.setting("gold_share")
        if not share:
            return None
        seen, of_gold = sql.execute(
            "SELECT count(*), coalesce(sum(gold IS NOT NULL), 0) FROM votes JOIN items"
            " ON items.id = votes.item WHERE labeler = ?",
            (labeler.number,),
        ).fetchone()
        if of_gold >= math.floor((seen + 1) * share):
            return None
        found = sql.execute(
            "SELECT id FROM items WHERE gold IS NOT NULL AND NOT EXISTS"
            " (SELECT 1 FROM votes WHERE item = id AND labeler = ?) ORDER BY place LIMIT 1",
            (labeler.number,),
        ).fetchone()
        return found["id"] if found else None

    def _open_item(self, sql: sqlite3.Connection, labeler: Labeler) -> str | None:
        """Return the first item with a free place that the labeler has not seen."""
        found = sql.execute(
            "SELECT id FROM items WHERE missing > 0"
            " AND missing > (SELECT count(*) FROM leases WHERE item = id AND expires > ?)"
            " AND NOT EXISTS (SELECT 1 FROM votes WHERE item = id AND labeler = ?)"
            " ORDER BY place LIMIT 1",
            (self._clock(), labeler.number),
        ).fetchone()
        return found["id"] if found else None

    @staticmethod
    def _row(sql: sqlite3.Connection, item: str) -> dict[str, Any]:
        found = sql.execute("SELECT row FROM items WHERE id = ?", (item,)).fetchone()
        if found is None:
            raise Refused("there is no such item")
        row: dict[str, Any] = json.loads(found["row"])
        return row

    # -- what labelers do --------------------------------------------------------------------------

    def vote(self, labeler: Labeler, item: str, request: str, vote: Mapping[str, Any]) -> int:
        """Store a ranking. The same request again stores nothing and returns the same number.

        Args:
            request: a name that the labeler's page gives this request.
            vote: `ranks`, `ratings` and `flags`, a list with an entry per response in the row's
                order; `note`; `seconds`.

        Raises:
            Refused: the labeler does not have this item.
            ValueError: the vote is not complete; the message says what is missing.
        """
        return self._settle(labeler, item, request, "vote", vote)

    def skip(self, labeler: Labeler, item: str, request: str, reason: str) -> int:
        """Store that a labeler leaves an item out; another one gets it."""
        return self._settle(labeler, item, request, "skip", {"reason": reason})

    def _settle(
        self, labeler: Labeler, item: str, request: str, kind: str, content: Mapping[str, Any]
    ) -> int:
        with self._writing() as sql:
            if (number := self._known(sql, labeler, request)) is not None:
                return number
            row = self._row(sql, item)
            if kind == "vote":
                content = checked_vote(content, len(row["responses"]), self.setting("flags"))
            shown = self._require_place(sql, labeler, item)
            number = self._write(sql, labeler, kind, item, request, {**content, "shown": shown})
            self._settled(sql, labeler, kind, item, number)
        return number

    @staticmethod
    def _settled(
        sql: sqlite3.Connection, labeler: Labeler, kind: str, item: str, number: int
    ) -> None:
        """Make a row of the log the labeler's vote or skip of an item."""
        sql.execute("INSERT INTO votes VALUES (?, ?, ?, ?)", (item, labeler.number, kind, number))
        sql.execute("DELETE FROM leases WHERE item = ? AND labeler = ?", (item, labeler.number))
        if kind == "vote":
            sql.execute(
                "UPDATE items SET missing = missing - 1 WHERE id = ? AND gold IS NULL", (item,)
            )

    def _require_place(self, sql: sqlite3.Connection, labeler: Labeler, item: str) -> list[int]:
        """Return the order in which the labeler sees an item that is still theirs.

        Raises:
            Refused: the labeler has answered it, never had it, or was away for too long.
        """
        if sql.execute(
            "SELECT 1 FROM votes WHERE item = ? AND labeler = ?", (item, labeler.number)
        ).fetchone():
            raise Refused("you have answered this one already")
        lease = sql.execute(
            "SELECT shown, expires FROM leases WHERE item = ? AND labeler = ?",
            (item, labeler.number),
        ).fetchone()
        if lease is None:
            raise Refused("this one was not given to you, or you were away for too long")
        if lease["expires"] <= self._clock() and not self._has_room(sql, labeler, item):
            raise Refused("you were away for too long, and others have this one now")
        shown: list[int] = json.loads(lease["shown"])
        return shown

    def undo(self, labeler: Labeler, request: str) -> str:
        """Take back the labeler's newest vote or skip; the item is theirs again.

        Returns:
            The item.

        Raises:
            Refused: there is nothing to take back, others have the item now, or it is decided.
        """
        with self._writing() as sql:
            known = sql.execute(
                "SELECT item FROM log WHERE labeler = ? AND request = ?", (labeler.number, request)
            ).fetchone()
            if known is not None:
                return str(known["item"])
            newest = sql.execute(
                "SELECT item, kind FROM votes WHERE labeler = ? ORDER BY number DESC LIMIT 1",
                (labeler.number,),
            ).fetchone()
            if newest is None:
                raise Refused("there is nothing to take back")
            item = str(newest["item"])
            if self._is_decided(sql, item):
                raise Refused("an admin has decided this one")
            if newest["kind"] == "skip" and not self._has_room(sql, labeler, item):
                raise Refused("others have the one that you skipped now")
            self._write(sql, labeler, "undo", item, request, {})
            sql.execute("DELETE FROM votes WHERE item = ? AND labeler = ?", (item, labeler.number))
            if newest["kind"] == "vote":
                sql.execute(
                    "UPDATE items SET missing = missing + 1 WHERE id = ? AND gold IS NULL", (item,)
                )
            sql.execute("DELETE FROM leases WHERE labeler = ?", (labeler.number,))
            self._lease(sql, labeler, item)
        return item

    def _has_room(self, sql: sqlite3.Connection, labeler: Labeler, item: str) -> bool:
        missing, gold = sql.execute(
            "SELECT missing, gold FROM items WHERE id = ?", (item,)
        ).fetchone()
        (others,) = sql.execute(
            "SELECT count(*) FROM leases WHERE item = ? AND labeler <> ? AND expires > ?",
            (item, labeler.number, self._clock()),
        ).fetchone()
        return gold is not None or missing > others

    @staticmethod
    def _is_decided(sql: sqlite3.Connection, item: str) -> bool:
        found = sql.execute(
            "SELECT 1 FROM log WHERE kind = 'adjudication' AND item = ?", (item,)
        ).fetchone()
        return found is not None

    def write(self, labeler: Labeler, request: str, kind: str, content: Mapping[str, Any]) -> int:
        """Store a prompt or a demonstration that a labeler wrote."""
        with self._writing() as sql:
            if (number := self._known(sql, labeler, request)) is not None:
                return number
            return self._write(sql, labeler, kind, None, request, content)

    def adjudicate(self, admin: Labeler, item: str, request: str, vote: Mapping[str, Any]) -> int:
        """Store the ranking that counts for an item in place of the labelers' own.

        The item is done: nobody else gets it. Who has it open may still send a vote.

        Args:
            vote: `ranks` alone. An admin decides which response is better; ratings and flags stay
                what each labeler said.

        Raises:
            Refused: nobody has ranked the item, so that the decision would replace nothing.
        """
        with self._writing() as sql:
            if (number := self._known(sql, admin, request)) is not None:
                return number
            row = self._row(sql, item)
            content = {"ranks": checked_ranks(vote, len(row["responses"]))}
            if not sql.execute(
                "SELECT 1 FROM votes WHERE item = ? AND kind = 'vote'", (item,)
            ).fetchone():
                raise Refused("nobody has ranked this one")
            sql.execute("UPDATE items SET missing = min(missing, 0) WHERE id = ?", (item,))
            return self._write(sql, admin, "adjudication", item, request, content)

    @staticmethod
    def _known(sql: sqlite3.Connection, labeler: Labeler, request: str) -> int | None:
        found = sql.execute(
            "SELECT number FROM log WHERE labeler = ? AND request = ?", (labeler.number, request)
        ).fetchone()
        return None if found is None else int(found["number"])

    def _write(
        self,
        sql: sqlite3.Connection,
        labeler: Labeler,
        kind: str,
        item: str | None,
        request: str,
        content: Mapping[str, Any],
    ) -> int:
        done = sql.execute(
            "INSERT INTO log (at, labeler, kind, item, request, content) VALUES (?, ?, ?, ?, ?, ?)",
            (self._clock(), labeler.number, kind, item, request, json.dumps(content)),
        )
        assert done.lastrowid is not None
        return done.lastrowid

    # -- what there is -----------------------------------------------------------------------------

    def progress(self, labeler: Labeler) -> dict[str, Any]:
        """Return what a labeler sees of the work; it costs the same however many votes there are.

        Returns:
            `items` and `done` of all; of the labeler's own, `votes` and the median `seconds` of the
            newest ones, None without any.
        """
        ((items, done),) = self._all(
            "SELECT count(*), coalesce(sum(missing <= 0), 0) FROM items WHERE gold IS NULL"
        )
        ((own,),) = self._all(
            "SELECT count(*) FROM votes WHERE labeler = ? AND kind = 'vote'", labeler.number
        )
        newest = self._all(
            "SELECT log.content FROM votes JOIN log ON log.number = votes.number"
            " WHERE votes.labeler = ? AND votes.kind = 'vote' ORDER BY votes.number DESC LIMIT ?",
            labeler.number,
            _NEWEST,
        )
        times = [json.loads(row["content"])["seconds"] for row in newest]
        seconds = [time for time in times if time is not None]  # imported votes may have none
        return {
            "items": items,
            "done": done,
            "votes": own,
            "seconds": statistics.median(seconds) if seconds else None,
        }

    def counts(self) -> dict[str, int]:
        """Return the numbers of items, of finished items, of votes, skips and people."""
        (row,) = self._all(
            "SELECT (SELECT count(*) FROM items WHERE gold IS NULL) AS items,"
            " (SELECT count(*) FROM items WHERE gold IS NULL AND missing <= 0) AS done,"
            " (SELECT count(*) FROM votes WHERE kind = 'vote') AS votes,"
            " (SELECT count(*) FROM votes WHERE kind = 'skip') AS skips,"
            " (SELECT count(*) FROM log WHERE kind = 'demonstration') AS demonstrations,"
            " (SELECT count(*) FROM log WHERE kind = 'prompt') AS prompts,"
            " (SELECT count(DISTINCT labeler) FROM votes) AS labelers,"
            " (SELECT coalesce(max(number), 0) FROM log) AS last"
        )
        return dict(row)

    def prompt_of(self, item: str) -> list[dict[str, Any]]:
        """Return the messages of an item's prompt."""
        with self._lock:
            prompt: list[dict[str, Any]] = self._row(self._sql, item)["prompt"]
        return prompt

    def adjudicated(self, last: int | None = None) -> dict[str, dict[str, Any]]:
        """Return the newest decision of an admin for each item that has one."""
        rows = self._all(
            "SELECT item, content FROM log WHERE kind = 'adjudication' AND number <= ?"
            " ORDER BY number",
            self.counts()["last"] if last is None else last,
        )
        return {row["item"]: json.loads(row["content"]) for row in rows}

    def written(self, kind: str, last: int) -> list[dict[str, Any]]:
        """Return the prompts or demonstrations that labelers wrote, oldest first."""
        rows = self._all(
            "SELECT content, name AS labeler FROM log JOIN labelers ON labelers.number = labeler"
            " WHERE kind = ? AND log.number <= ? ORDER BY log.number",
            kind,
            last,
        )
        return [{**json.loads(row["content"]), "labeler": row["labeler"]} for row in rows]

    def rankings(self, last: int | None = None) -> list[dict[str, Any]]:
        """Return the current votes, oldest first: item, labeler, content, and the item's row.

        Args:
            last: ignore what was written after this number of the log; None: nothing.
        """
        limit = self.counts()["last"] if last is None else last
        rows = self._all(
            "SELECT log.number, log.at, log.item, log.kind, log.content, labelers.name AS labeler,"
            " items.row, items.split, items.gold FROM log JOIN labelers ON labelers.number ="
            " log.labeler LEFT JOIN items ON items.id = log.item WHERE log.number <= ?"
            " ORDER BY log.number",
            limit,
        )
        current: dict[tuple[str, str], dict[str, Any]] = {}
        for row in rows:
            place = (row["item"], row["labeler"])
            if row["kind"] == "undo":
                current.pop(place, None)
            elif row["kind"] == "vote":
                found = dict(row)
                for name in ("content", "row", "gold"):
                    found[name] = json.loads(found[name]) if found[name] else None
                current[place] = found
        return list(current.values())


def hashed(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def item_id(prompt: Sequence[Mapping[str, Any]], responses: Sequence[str]) -> str:
    """Return the sha256 of a prompt and its responses, in whatever order these come."""
    written = json.dumps([list(map(dict, prompt)), sorted(responses)], sort_keys=True)
    return hashlib.sha256(written.encode()).hexdigest()


def wanted(item: str, settings: Settings) -> int:
    """Return how many labelers rank an item; it depends on the item alone."""
    drawn = int(item[:13], 16) / 16**13
    return settings.overlap if drawn < settings.overlap_share else 1


def _require_showable(row: Mapping[str, Any]) -> None:
    """Raise `ConfigError` if the page or a file of rows cannot hold an item."""
    count = len(row["responses"])
    if not 2 <= count <= MOST_RESPONSES:
        raise ConfigError(f"an item: expected 2 to {MOST_RESPONSES} responses, got {count}")
    if not _is_whole_text(json.dumps(row, ensure_ascii=False)):
        raise ConfigError("an item: expected whole characters, got half of a surrogate pair")


def _is_whole_text(text: str) -> bool:
    """Return whether a text can be written in UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _as_shown(vote: Mapping[str, Any], given: Sequence[str], here: Sequence[str]) -> dict[str, Any]:
    """Return a vote on responses `given` as a vote on the same responses in the order `here`."""
    order = list(range(len(given)))
    if given != here:
        order.sort(key=lambda i: given[i])
        places = sorted(range(len(here)), key=lambda i: here[i])
        order = [i for _, i in sorted(zip(places, order, strict=True))]
    return {
        name: [value[i] for i in order] if name in ("ranks", "ratings", "flags") else value
        for name, value in vote.items()
    }


def checked_vote(
    vote: Mapping[str, Any], count: int, flags: Sequence[str], imported: bool = False
) -> dict[str, Any]:
    """Return a vote with nothing but what is known of a vote.

    Args:
        imported: ratings and seconds may be None, because not every tool has them.

    Raises:
        ValueError: something is missing or not allowed.
    """
    seconds = vote.get("seconds", 0)
    if not (imported and seconds is None) and not _is_duration(seconds):
        raise ValueError("seconds: expected a number from 0 to a million")
    note = str(vote.get("note", ""))[:2000]
    if not _is_whole_text(note):
        raise ValueError("note: expected whole characters")
    return {
        "ranks": checked_ranks(vote, count),
        "ratings": _checked_ratings(vote, count, imported),
        "flags": _checked_flags(vote, count, flags),
        "note": note,
        "seconds": None if seconds is None else round(float(seconds), 1),
    }


def _checked_ratings(vote: Mapping[str, Any], count: int, imported: bool) -> list[int | None]:
    ratings = vote.get("ratings")
    if not _is_list(ratings, count) or not all(
        _is_whole(rating, 1, 7) or (imported and rating is None) for rating in ratings
    ):
        raise ValueError(f"ratings: expected {count} whole numbers from 1 to 7")
    return ratings


def _checked_flags(vote: Mapping[str, Any], count: int, flags: Sequence[str]) -> list[list[str]]:
    marks = vote.get("flags")
    if not _is_list(marks, count) or not all(
        isinstance(own, list) and all(mark in flags for mark in own) for own in marks
    ):
        raise ValueError(f"flags: expected {count} lists of known flags")
    return [sorted(set(own)) for own in marks]


def _is_duration(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e6


def checked_ranks(vote: Mapping[str, Any], count: int) -> list[int]:
    """Return the ranks of a vote, without gaps: 1 is best, equal ranks are ties.

    Raises:
        ValueError: they are missing or not allowed.
    """
    ranks = vote.get("ranks")
    if not _is_list(ranks, count) or not all(_is_whole(rank, 1, count) for rank in ranks):
        raise ValueError(f"ranks: expected {count} whole numbers from 1 to {count}")
    places = {rank: i for i, rank in enumerate(sorted(set(ranks)), 1)}
    return [places[rank] for rank in ranks]


def _is_list(value: Any, count: int) -> TypeGuard[list[Any]]:
    return isinstance(value, list) and len(value) == count


def _is_whole(value: Any, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
