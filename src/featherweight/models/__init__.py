"""Models as we see them: where they come from, their structure, their weights, their blocks run one by one."""
