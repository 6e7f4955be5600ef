"""Published pipelines, written from their papers: oracles of the tests, and competitors."""
