"""x"""
def add_parser(c,f): c.add_parser("memory")
