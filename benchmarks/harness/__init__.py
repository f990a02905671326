"""What all benchmarks share: arguments and reports, fair rounds, servers, text and charts."""
