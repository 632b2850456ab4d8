"""From a line or a row to a checked record, whatever the format: one object for one file."""

from typing import Any

import msgspec

from app.domain.datasets.faults import (
    WrongRecord,
    in_our_words,
    quoted_list,
    type_name,
    wrong_record,
)
from app.domain.datasets.kinds import RECORD_KINDS, RecordKind
from app.domain.datasets.limits import MAX_MEDIA_RECORD_BYTES, MAX_NESTING
from app.domain.datasets.media import MediaFiles, NoMediaFiles
from app.domain.datasets.recognition import find_kind, kind_of
from app.domain.datasets.records import Record
from app.domain.errors import InvalidFile

_NOT_DECODED = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class Decoding:
    """Decodes and checks the records of one file, which are all of one kind.

    Args:
        files: where the paths in records lead to; without them, nowhere.
        unit: how a message names a record: `line`, `row`.
        within: what follows its number: ` of manifest.jsonl`.
    """

    def __init__(
        self, files: MediaFiles | None = None, unit: str = "line", within: str = ""
    ) -> None:
        self._files = files or NoMediaFiles()
        self._unit = unit
        self._within = within
        self._first: Any = None
        self.kind: RecordKind | None = None

    @property
    def max_record_bytes(self) -> int:
        """The most that a record may take; before its kind is known, that of any."""
        return self.kind.max_bytes if self.kind else MAX_MEDIA_RECORD_BYTES

    def line(self, number: int, line: bytes) -> Record:
        """Return the record of a line of JSON. Raises: InvalidFile."""
        kind = self.kind or self.recognise(number, self.parse(number, line))
        try:
            record = kind.decoder.decode(line)
        except _NOT_DECODED as error:
            raise self._explained(number, self.parse(number, line), error) from None
        try:
            return self._checked(kind, record)
        except (WrongRecord, msgspec.ValidationError) as error:
            raise self._explained(number, self.parse(number, line), error) from None

    def row(self, number: int, row: dict[str, Any]) -> Record:
        """Return the record of a row of typed cells. Raises: InvalidFile."""
        kind = self.kind or self.recognise(number, row)
        try:
            return self._checked(kind, msgspec.convert(row, kind.struct))
        except (WrongRecord, *_NOT_DECODED) as error:
            raise self._explained(number, None, error) from None

    def recognise(self, number: int, record: Any) -> RecordKind:
        """Set and return the kind of the file, that of its first record. Raises: InvalidFile."""
        if not isinstance(record, dict):
            raise self.wrong(number, f"expected a JSON object, found {type_name(record)}")
        try:
            self.kind = kind_of(record)
        except WrongRecord as error:
            raise self.wrong(number, str(error)) from None
        return self.kind

    def parse(self, number: int, line: bytes) -> Any:
        """Return a line as JSON of any shape. Raises: InvalidFile."""
        try:
            line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.wrong(number, f"byte {error.start + 1} is not valid UTF-8") from None
        try:
            return msgspec.json.decode(line)
        except RecursionError:
            raise self.wrong(number, f"nested deeper than {MAX_NESTING} levels") from None
        except msgspec.DecodeError as error:
            detail = str(error).removeprefix("JSON is malformed: ")
            hint = ""
            if number == 1 and line.lstrip().startswith(b"["):
                hint = " This looks like one JSON array; put one record on each line instead."
            example = (self.kind or RECORD_KINDS[0]).example
            raise self.wrong(
                number,
                f"not valid JSON: {detail}.{hint} Expected one JSON object a line, such as "
                + example,
            ) from None

    def wrong(self, number: int, what: str) -> InvalidFile:
        return wrong_record(f"{self._unit} {number}{self._within}", what)

    def _checked(self, kind: RecordKind, decoded: Any) -> Record:
        record: Record
        record = kind.check(decoded, self._files) if kind.has_media else kind.check(decoded)
        if kind.agree is not None:
            if self._first is None:
                self._first = record
            kind.agree(self._first, record)
        return record

    def _explained(self, number: int, record: Any, error: Exception) -> InvalidFile:
        kind = self.kind
        assert kind is not None
        # Where columns have names there is but one kind, whatever cells are empty.
        if isinstance(record, dict):
            other = find_kind(record)
            if other is not None and other is not kind:
                return self.wrong(
                    number,
                    f"a record of kind {other.name} ({quoted_list(record)}) in a file of kind "
                    f"{kind.name}; one file holds records of one kind, such as {kind.example}",
                )
        if isinstance(error, WrongRecord):
            return self.wrong(number, str(error))
        if isinstance(error, RecursionError):
            return self.wrong(number, f"nested deeper than {MAX_NESTING} levels")
        return self.wrong(number, in_our_words(error, kind.example))
