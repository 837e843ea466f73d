import sys, time, itertools, traceback
from concurrent.futures import ThreadPoolExecutor
import torch
import featherweight.kernels.cuda.cache_attention as ca
from featherweight.kernels.cuda.compiler import build
from kv_attention import *
from kv_attention import _first
from timed import time_together, run_poisoned, relative_error
SHAPES = [Shape(*map(int, s.split("x"))) for s in sys.argv[1].split(",")]
names = sys.argv[2].split(",")
points = [tuple(map(int, p.split("x"))) for p in sys.argv[3].split(",")]
# collect compile jobs
t=time.time()
jobs=[]
def fake(source,name,constants,grid,threads,shared,arguments,device): jobs.append((source,tuple(sorted(constants.items()))))
for n in names:
    c=cache_codecs(n)
    q=torch.randn(1,HEADS,1,DIM,device="cuda",dtype=torch.bfloat16)
    k=draw_part(c[0],512,c[0].settled(512),1,0); v=draw_part(c[1],512,c[1].settled(512),1,1)
    for s in SHAPES: ca.attend(q,k,v,None,SCALING,shape=s,launch=fake)
def comp(j):
    try: build(j[0],dict(j[1]),"sm_90")
    except Exception as e: print(j, str(e)[:3000])
with ThreadPoolExecutor(16) as p: list(p.map(comp,set(jobs)))
print("compiled",len(set(jobs)),"in",round(time.time()-t,1),flush=True)
for batch,tokens in points:
    cases={}
    if "base" in sys.argv:
        for c in exact_cases(batch,tokens)[:1]: cases[c.name]=(c.calls,c.bytes,relative_error(run_poisoned(c.calls[0]),c.reference))
    for n in names:
        try:
            base=coded_case(n,batch,tokens)
            for s in SHAPES:
                calls=[partial(_first,*c.args[:3],s) for c in base.calls]
                e=relative_error(run_poisoned(calls[0]),base.reference)
                cases[f"{n} {s.warps}x{s.depth}x{s.resident}"]=(calls,base.bytes,e)
        except Exception: traceback.print_exc()
    try: times=time_together({k:v[0] for k,v in cases.items()},8)
    except Exception: traceback.print_exc(); continue
    for k,t in times.items(): print(f"b{batch} {tokens:6d} {k:28s} {t.median:9.2f} us {cases[k][1]/t.median/1e6:6.2f} TB/s err {cases[k][2]:.1e}",flush=True)
    del cases; torch.cuda.empty_cache()
