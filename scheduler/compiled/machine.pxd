cimport cython
from scheduler.compiled.gpus cimport Gpus
from scheduler.compiled.heap cimport Heap
from scheduler.compiled.models cimport Models
from scheduler.compiled.numbers cimport Numbers
from scheduler.compiled.queues cimport Queues
from scheduler.compiled.fleet cimport Fleet
from scheduler.compiled cimport plain
from scheduler.compiled.limits cimport (
    AHEAD, BASE, DEPTH, DUPLICATE, FIELDS, FULL, LAST, LONGEST, MASK, NEVER, OUT_OF_RANGE, PLAIN, PRIORITIES, STOP,
    TAIL, UNKNOWN, UNSERVED, UNTIL,
)


cdef class Core(Fleet):
    @cython.locals(
        m="const unsigned int[::1]", d="const long long[::1]", k="const unsigned long long[::1]",
        p="const unsigned char[::1]", touched=Numbers, queues=Queues, which="long long", due="long long",
        ident="unsigned long long", rank="long long", slot="long long", fresh=bint, i="long long",
        n="long long", row="long long", tail="long long", start="long long", end="long long",
        moves="long long", lane="long long", ranked=bint, after="long long",
    )
    cpdef submit(self, long long now, model, deadline, key, priority=*, bint again=*)
    @cython.locals(n="long long", to="long long", i="long long")
    cdef void _record(self, long long now, const unsigned int[::1] model, const long long[::1] deadline) except *
    @cython.locals(lane="long long", row="long long", taped="long long")
    cpdef arrive(self, long long now, long long model, long long deadline, unsigned long long key)
    @cython.locals(slot="long long")
    cdef long long _admit(self, long long now, long long which, long long due, unsigned long long ident, long long rank, bint fresh) except -2
    @cython.locals(
        g="const unsigned int[:]", b="const unsigned long long[:]", f="const long long[:]", i="long long",
    )
    cpdef complete(self, long long now, gpu, batch, finished)
    cpdef report(self, long long now, long long gpu, long long batch, long long finished)
    cdef void _give_back(self, long long now, long long which, long long batch, long long ended) noexcept
    @cython.locals(
        i="long long", length="long long", start="long long", took="long long", over="long long",
    )
    cdef void _note_length(self, long long which, long long batch, long long ended) noexcept
    cpdef advance(self, long long now)
    @cython.locals(ready=Heap, pending=Heap)
    cpdef long long next_wakeup(self) except? -1
    cpdef clear_actions(self)
    cdef void _foresee_lane(self, long long lane) noexcept
    cdef void _foresee_gpu(self, long long gpu) noexcept
