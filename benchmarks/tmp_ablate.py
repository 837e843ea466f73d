import sys, torch, traceback
from functools import partial
from dataclasses import replace
import sparse_multiply as s
from timed import graph_time
from featherweight.kernels.cuda import stream, two_level, two_of_four
profile = len(sys.argv) > 1
n, k = 28672, 4096
x = torch.randn(1, k, device="cuda", dtype=torch.bfloat16)
y = torch.empty(1, n, device="cuda", dtype=torch.bfloat16)
def spqr(share, ordered=False):
    p, sp = s.draw_two_level(n, k, 3, ordered, share, "cuda")
    return two_level.encode(p, 3, 3, sp)
def sparse():
    return s.weights_two_of_four(n, k, "cuda")[1][1]
C = lambda *c: (c,)
runs = [("list", spqr(0.01), two_level), ("plain", spqr(0.0), two_level), ("2:4", sparse(), two_of_four)]
def shape(w, cuts): return stream.shape_of(*w.chunked.chunks.shape, 1, w.chunked.segment, *stream._limits(x.device), cuts=cuts)
def const(m, w, **extra):
    if m is two_level: return "two_level.cu", {"BITS": 3, "SECOND_BITS": 3, **extra}
    return "two_of_four.cu", {"BITS": 4, "GROUP": 128, "SCALE": 0, "ZEROS": 0, "UNIT": 256, **extra}
if profile:
    for name, w, m in runs:
        src, c = const(m, w)
        for _ in range(2):
            stream.multiply(src, c, x, w.chunked, None, y, shape(w, C(16, 1, 4, 1)))
        torch.cuda.synchronize()
    sys.exit()
def padded(w):
    extra = -w.chunked.chunks.shape[2] % 128
    return replace(w, chunked=replace(w.chunked, chunks=torch.nn.functional.pad(w.chunked.chunks, (0, extra)))), extra
for name, w, m in runs:
    try:
        wide, extra = padded(w)
        copies = s.copies_of(wide.chunked)
        for ablate in (0, 1):
            src, c = const(m, w, ABLATE=ablate, CHUNK_PAD=extra)
            t = graph_time([partial(stream.multiply, src, c, x, each, None, y, shape(wide, C(16, 1, 3, 1)), True) for each in copies], 8)
            print(f"{name:6} padded by {extra} ablate {ablate}: {t.median:.2f} us", flush=True)
    except Exception as e:
        print("padded", repr(e)[:300])
    copies = s.copies_of(w.chunked)
    for cuts in (C(16, 1, 4, 1), C(12, 1, 4, 2), C(8, 1, 4, 1)):
        for ablate in (0, 1, 2, 3):
            if ablate and cuts[0][0] != 16: continue
            for over in (True, False):
                try:
                    src, c = const(m, w, ABLATE=ablate)
                    t = graph_time([partial(stream.multiply, src, c, x, each, None, y, shape(w, cuts), over) for each in copies], 8)
                    print(f"{name:6} {cuts} ablate {ablate} overlapped {over}: {t.median:.2f} us", flush=True)
                except Exception as e:
                    print(name, cuts, ablate, repr(e)[:300], flush=True)
