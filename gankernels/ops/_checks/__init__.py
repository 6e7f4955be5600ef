"""The words for arguments that operators refuse, by stem; looked for after a kernel refused."""
