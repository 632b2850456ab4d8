"""The database: tables, transactions and every SQL statement in the tree."""
