"""Programs: one file or folder per subcommand of `wmgym`. What several of them share is in `support/`; no program imports another."""
