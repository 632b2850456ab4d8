"""All SQL, one file for each table family. Functions take the open connection and never commit."""
