"""How large what a dataset holds may be: reading one takes bounded memory, whoever made it."""

MAX_RECORD_BYTES = 1 << 20
MAX_NESTING = 32
# One image or recording, and a record that holds it as a data URL: four characters for 3 bytes.
MAX_MEDIA_BYTES = 16 << 20
MAX_MEDIA_RECORD_BYTES = 24 << 20
# The list of a zip's files is read at once; what they unpack to is never held, but takes time.
MAX_ARCHIVE_DIRECTORY_BYTES = 16 << 20
MAX_ARCHIVE_BYTES = 16 << 30
MAX_PARQUET_FOOTER_BYTES = 4 << 20
# What a person is shown of a refusal.
MAX_MESSAGE_CHARACTERS = 600
MAX_SHOWN_CHARACTERS = 60
