cimport cython
from scheduler.compiled.gpus cimport Gpus
from scheduler.compiled.heap cimport Heap
from scheduler.compiled.models cimport Models
from scheduler.compiled.queues cimport Queues
from scheduler.compiled.fleet cimport Fleet

cdef bint PLAIN
cdef long long AHEAD
cdef long long PRIORITIES
cdef long long NEVER
cdef long long FULL
cdef long long UNKNOWN
cdef long long OUT_OF_RANGE
cdef long long DUPLICATE
cdef long long UNSERVED
cdef long long FIELDS
cdef long long UNTIL
cdef long long STOP
cdef long long TAIL
cdef long long LAST
cdef long long BASE
cdef long long MASK

cdef class Core(Fleet):
    @cython.locals(
        m="const unsigned int[:]", d="const long long[:]", k="const unsigned long long[:]",
        p="const unsigned char[:]", touched=Heap, which="long long", due="long long",
        ident="unsigned long long", rank="long long", slot="long long", fresh=bint, i="long long", rings="long long",
    )
    cpdef submit(self, long long now, model, deadline, key, priority=*, bint again=*)
    @cython.locals(found="unsigned long long", which="long long", i="long long")
    cdef long long _fetch(self, const unsigned int[:] model, long long start, long long end) noexcept
    @cython.locals(lane="long long", row="long long")
    cpdef arrive(self, long long now, long long model, long long deadline, unsigned long long key)
    @cython.locals(slot="long long")
    cdef long long _admit(self, long long now, long long which, long long due, unsigned long long ident, long long rank, bint fresh) except -2
    @cython.locals(
        g="const unsigned int[:]", b="const unsigned long long[:]", f="const long long[:]", i="long long",
    )
    cpdef complete(self, long long now, gpu, batch, finished)
    cpdef report(self, long long now, long long gpu, long long batch, long long finished)
    cdef void _give_back(self, long long now, long long which, long long batch, long long ended) noexcept
    cpdef advance(self, long long now)
    @cython.locals(ready=Heap, pending=Heap)
    cpdef long long next_wakeup(self) except? -1
    cpdef clear_actions(self)
