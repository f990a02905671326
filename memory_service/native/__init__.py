"""The native implementation of the service Rows, in C++ on gRPC C++: optional, and equal to the one in Python."""
