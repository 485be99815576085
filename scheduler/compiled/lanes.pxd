cimport cython
from scheduler.compiled.heap cimport Heap
from scheduler.compiled.meter cimport Meter
from scheduler.compiled.models cimport Models
from scheduler.compiled.numbers cimport Numbers
from scheduler.compiled.policies cimport Policy
from scheduler.compiled.queues cimport Queues
from scheduler.compiled.limits cimport (
    FIELDS, FIRST, HEAD, MASK, NEVER, PRIORITIES, SAMPLE_NS, STOP, TAIL, UNTIL,
)


cdef class Lanes:
    cdef public Policy policy
    cdef public long long now
    cdef public long long sample
    cdef public long long control
    cdef public long long data
    cdef public long long result
    cdef public long long max_queue
    cdef public Queues queues
    cdef public Meter meter
    cdef public Models models
    cdef public long long[::1] lane_of
    cdef public long long[::1] lane_model
    cdef public long long[::1] lane_priority
    cdef public long long[::1] lane_target
    cdef public long long[::1] lane_target_sample
    cdef public long long[::1] lane_gap
    cdef public long long[::1] lane_size
    cdef public long long[::1] lane_head
    cdef public long long[::1] lane_at
    cdef public long long[::1] lane_calm
    cdef public signed char[::1] lane_stage
    cdef public signed char[::1] lane_waits
    cdef public object tuner
    cdef public long long tune_at
    cdef public long long early
    cdef public long long work
    cdef public long long tape_room
    cdef public long long taped
    cdef public long long[::1] tape_at
    cdef public unsigned int[::1] tape_model
    cdef public long long[::1] tape_deadline
    cdef public long long[::1] lane_early
    cdef public long long[::1] lane_guard
    cdef public long long[::1] lane_cushion
    cdef public long long[::1] lane_linger
    cdef public long long[::1] lane_open
    cdef public Heap pending
    cdef public list ready
    cdef public Numbers touched
    cdef public Numbers fresh
    cdef public long long[::1] rows

    @cython.locals(ready=Heap)
    cpdef candidate(self, long long lane)
    cdef long long _bring(self, long long lane, long long opens, long long arrived) noexcept
    cdef long long _opening(self, long long lane, long long size) noexcept
    cdef void _wait(self, long long lane, long long n, long long opens, long long now) noexcept
    cdef void _calm(self, long long lane, long long until, long long most) noexcept
    cdef void _gather(self, long long lane, long long now) noexcept
    cdef long long _form(self, long long lane, long long at, long long now, long long free, long long margin) noexcept
    cdef void _firm(self, long long lane) noexcept
    cpdef plan_lane(self, long long lane, long long early, long long guard, long long target, long long cushion, long long linger)
    cdef void _firm_all(self) noexcept
    cdef bint _restage(self, long long lane, long long now) noexcept
    @cython.locals(ready=Heap)
    cdef void _rest(self, long long lane) noexcept
    cdef long long _ends(self, long long at, long long size, long long now, long long free) noexcept
    cdef void _aim(self, long long lane, long long model, long long at) noexcept
    cdef long long _new_lane(self, long long model, long long priority) except -1
