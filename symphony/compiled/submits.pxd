cimport cython
from symphony.compiled cimport loads

cdef extern from *:
    """
    #define SYMPHONY_WIRE_ROW ((int){0x98})
    #define SYMPHONY_WIRE_NIL ((int){0xC0})
    #define SYMPHONY_WIRE_KIND ((int){1})
    #define SYMPHONY_WIRE_FORM ((int){1})
    #define SYMPHONY_WIRE_MOST ((long long){65536})
    """
    int ROW "SYMPHONY_WIRE_ROW"
    int NIL "SYMPHONY_WIRE_NIL"
    int KIND "SYMPHONY_WIRE_KIND"
    int FORM "SYMPHONY_WIRE_FORM"
    long long MOST "SYMPHONY_WIRE_MOST"


cdef class Submits:
    cdef public long long at
    cdef public int odd
    cdef public long long room
    cdef public unsigned int[::1] model
    cdef public long long[::1] deadline
    cdef public unsigned long long[::1] key
    cdef public unsigned long long[::1] out
    cdef public tuple _views

    @cython.locals(
        n="long long", model="unsigned int[::1]", deadline="long long[::1]", key="unsigned long long[::1]",
        frame="const unsigned char[::1]", size="long long", meant="unsigned long long", slot="unsigned long long",
        models="long long", deadlines="long long", keys="long long", model_at="long long", deadline_at="long long",
        key_at="long long", some="long long", i="long long", foreign="unsigned long long", ident="unsigned long long",
        known="unsigned int", which="unsigned int",
    )
    cpdef long long read(self, list frames, unsigned long long incarnation, long long[::1] counts) except -2
    @cython.locals(
        model="unsigned int[::1]", deadline="long long[::1]", key="unsigned long long[::1]",
        out="unsigned long long[::1]", known="unsigned int", left="long long", gone="long long", i="long long",
        which="unsigned int", limit="long long",
    )
    cpdef long long split(self, long long n, const long long[::1] due, long long otherwise, long long[::1] counts) except -1
    @cython.locals(at="long long", first="int")
    cdef unsigned long long _number(self, const unsigned char[::1] frame, long long size) noexcept
    @cython.locals(at="long long", first="int", length="unsigned long long")
    cdef long long _binary(self, const unsigned char[::1] frame, long long size) noexcept
    @cython.locals(at="long long", i="long long", value="unsigned long long")
    cdef unsigned long long _big_endian(self, const unsigned char[::1] frame, long long size, int width) noexcept
    @cython.locals(room="long long")
    cdef _grow(self, long long needed)
