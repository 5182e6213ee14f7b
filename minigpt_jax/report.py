"""stub"""
def environment(): return {}
def write(run): return run
