import sys, torch
import featherweight.kernels.cuda.cache_attention as ca
from kv_attention import *
from kv_attention import _first
for spec in sys.argv[1:]:
    name, b, t, s = spec.split(",")
    shape = Shape(*map(int, s.split("x")))
    case = coded_case(name, int(b), int(t), shape)
    for _ in range(2): case.calls[0]()
    torch.cuda.synchronize()
    torch.cuda.cudart().cudaProfilerStart(); case.calls[0](); torch.cuda.synchronize(); torch.cuda.cudart().cudaProfilerStop()
    del case
