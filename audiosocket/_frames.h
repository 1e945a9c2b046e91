/* What the compiled steps of a frame share. The types here hold the state of the Python classes of the same names, field
 * by field, so that the methods in Python read and write the very same. A compiled method does the usual frame, and hands
 * everything else, before it has changed anything, to the method in Python that it stands in front of. */
#pragma once
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <structmember.h>

/* The fields of a type by kind: O an object, N a number, B a flag; each with its name in Python. */
#define NOISE_FLOOR(O, N, B)                                                                                              \
    O(reach, "_reach") N(on, "_on") N(off, "_off") N(least, "_least") N(window_end, "_window_end")

#define TURNS(O, N, B)                                                                                                    \
    O(heard, "heard") O(earlier, "_earlier") O(floor, "_floor") O(upper_bytes, "_upper_bytes")                            \
    N(upper_step, "_upper_step") N(played_step, "_played_step") N(run, "_run") N(caller_start, "_caller_start")           \
    N(caller_last, "_caller_last") N(app_start, "_app_start") N(app_last, "_app_last")                                    \
    N(barge_in_start, "_barge_in_start") N(caller_ticks, "caller_ticks") N(app_ticks, "app_ticks")                        \
    N(both_ticks, "both_ticks") B(speaking, "_speaking") B(steady, "_steady") B(uttering, "_uttering")

#define PLAYOUT(O, N, B)                                                                                                  \
    O(chunks, "_chunks") O(marks, "marks") O(last, "_last") O(cut_off, "cut_off")                                         \
    N(frame_bytes, "_frame_bytes") N(max_bytes, "_max_bytes") N(head, "_head") N(pushed, "_pushed")                       \
    N(position, "_position") N(idle_ticks, "_idle_ticks") N(window_min, "_window_min") N(window_ticks, "_window_ticks")   \
    N(previous_min, "_previous_min") N(recovering, "_recovering") N(frames_played, "frames_played")                       \
    N(peak_bytes, "peak_bytes") N(fade_samples, "_fade_samples") B(skip_byte, "_skip_byte") B(waited, "_waited")          \
    N(settle, "_settle") N(settle_min, "_settle_min") N(since_cut, "_since_cut") N(excess, "_excess")                     \
    N(budget, "_budget") N(pace, "_pace") N(baseline, "_baseline") N(recovered_frames, "recovered_frames")                \
    N(underruns, "underruns") N(stall_underruns, "stall_underruns")

#define MEDIA_MESSAGES(O, N, B)                                                                                           \
    O(text, "_text") N(end_1, "_end_1") N(end_2, "_end_2") N(end_3, "_end_3") N(end_4, "_end_4")                          \
    N(sequence, "sequence") N(chunk, "_chunk") N(next_ms, "next_ms") N(frame_ms, "_frame_ms")                             \
    B(time_second, "_time_second")

#define SESSION(O, N, B)                                                                                                  \
    O(playout, "playout") O(turns, "turns") O(rest, "_rest") O(send, "_send") O(media, "_media") O(convert, "_convert")   \
    O(samples, "_samples") O(usual_sid, "_usual_sid") O(app_samples, "_app_samples") O(recorder, "recorder")              \
    O(held_marks, "_held_marks") O(prompt, "_prompt") O(silence_frame, "_silence_frame") O(header, "_header")             \
    N(app_frame_bytes, "_frame_bytes") N(caller_frames, "_caller_frames") N(gap_ticks, "_gap_ticks")                      \
    N(media_received, "_media_received") N(sent, "_sent") N(bytes_received, "bytes_received")                             \
    N(silence_played, "silence_played") N(ticks, "ticks") B(flowing, "_flowing") B(open, "_open")                         \
    B(app_blocked, "app_blocked") B(held, "held") B(first_audio, "first_audio") N(ticks_late, "ticks_late")               \
    N(stalls, "stalls") N(stall_tick, "_stall_tick") N(stall_frames, "_stall_frames") N(owed, "_owed")                    \
    N(filled_tick, "_filled_tick") N(filled_frames, "_filled_frames")

#define LEG(O, N, B)                                                                                                      \
    O(session, "session") O(transport, "_transport") O(usual_header, "_usual_header") N(usual_bytes, "_usual_bytes")      \
    N(blocked_ticks, "_blocked_ticks") N(socket, "_socket") N(read_frames, "_read_frames") B(closing, "_closing")               \
    B(whole, "_whole") B(queued, "_queued")

#define GATE(O, N, B)                                                                                                     \
    O(app_text, "_app_text") O(unsent, "_unsent") O(write, "_write") O(send_otherwise, "_send_otherwise")                 \
    N(socket, "_socket") N(max_bytes, "_max_bytes") B(between, "_between") B(reads, "_reads") B(sends, "_sends")          \
    B(queued, "_queued")

#define FIELD_O(field, name) PyObject *field;
#define FIELD_N(field, name) long long field;
#define FIELD_B(field, name) char field;
#define STRUCT(type, FIELDS) typedef struct { PyObject_HEAD FIELDS(FIELD_O, FIELD_N, FIELD_B) } type;
STRUCT(noise_floor, NOISE_FLOOR)
STRUCT(turns, TURNS)
STRUCT(playout, PLAYOUT)
STRUCT(media_messages, MEDIA_MESSAGES)
STRUCT(session, SESSION)
STRUCT(leg, LEG)
STRUCT(gate, GATE)

/* In a file that defines a type: SELF is its struct. */
#define MEMBER_O(field, name) {name, T_OBJECT_EX, offsetof(SELF, field), 0, NULL},
#define MEMBER_N(field, name) {name, T_LONGLONG, offsetof(SELF, field), 0, NULL},
#define MEMBER_B(field, name) {name, T_BOOL, offsetof(SELF, field), 0, NULL},
#define VISIT_O(field, name) Py_VISIT(self->field);
#define CLEAR_O(field, name) Py_CLEAR(self->field);
#define NOTHING(field, name)
#define TYPE(type, FIELDS, title)                                                                                         \
    static PyMemberDef type##_members[] = {FIELDS(MEMBER_O, MEMBER_N, MEMBER_B){NULL, 0, 0, 0, NULL}};                    \
    static int type##_traverse(PyObject *object, visitproc visit, void *arg) {                                            \
        type *self = (type *)object;                                                                                      \
        FIELDS(VISIT_O, NOTHING, NOTHING)                                                                                 \
        return 0;                                                                                                         \
    }                                                                                                                     \
    static int type##_clear(PyObject *object) {                                                                           \
        type *self = (type *)object;                                                                                      \
        FIELDS(CLEAR_O, NOTHING, NOTHING)                                                                                 \
        return 0;                                                                                                         \
    }                                                                                                                     \
    static void type##_free(PyObject *object) {                                                                           \
        PyObject_GC_UnTrack(object);                                                                                      \
        type##_clear(object);                                                                                             \
        Py_TYPE(object)->tp_free(object);                                                                                 \
    }                                                                                                                     \
    PyTypeObject type##_type = {                                                                                          \
        PyVarObject_HEAD_INIT(NULL, 0).tp_name = "audiosocket._frames." title,                                            \
        .tp_basicsize = sizeof(type),                                                                                     \
        .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,                                        \
        .tp_new = PyType_GenericNew,                                                                                      \
        .tp_dealloc = type##_free,                                                                                        \
        .tp_traverse = type##_traverse,                                                                                   \
        .tp_clear = type##_clear,                                                                                         \
        .tp_members = type##_members,                                                                                     \
        .tp_methods = type##_methods,                                                                                     \
    };
extern PyTypeObject noise_floor_type, turns_type, playout_type, media_messages_type, session_type, leg_type, gate_type,
    poll_type;

/* Whether an object is there and of a type, or of a class made of it. */
static inline int is_a(PyObject *object, PyTypeObject *type) { return object != NULL && PyObject_TypeCheck(object, type); }
static inline int is_bytes(PyObject *object) { return object != NULL && PyBytes_CheckExact(object); }
static inline void put_object(PyObject **field, PyObject *object) { /* takes the reference over */
    PyObject *before = *field;
    *field = object;
    Py_XDECREF(before);
}

/* What a call gives that is of no further use: 0, or -1 at an exception. */
static inline int done(PyObject *result) {
    if (result == NULL) return -1;
    Py_DECREF(result);
    return 0;
}

/* The methods in Python that the compiled ones stand in front of; `refer` in the module puts them here. */
enum reference {
    MEDIA_MESSAGES_MEDIA, PLAYOUT_PUSH, PLAYOUT_TICK, PLAYOUT_NOTE_STALL, TURNS_TICK, SESSION_CALLER_AUDIO,
    SESSION_CALLER_BACKLOG, SESSION_APP_TEXT, SESSION_TICK, LEG_DATA_RECEIVED, LEG_TICK, GATE_DATA_RECEIVED, GATE_SEND,
    REFERENCES
};
PyObject *refer_to(enum reference which, PyObject *self, PyObject *one, PyObject *two); /* `two` may be NULL */
/* What the rules in Python name; `refer` again. */
enum constant {
    GAP_TICKS, PAUSE_TICKS, SILENCE_TICKS, LOOK_TICKS, AUDIBLE_SAMPLES, SHARE, NEVER, LEVEL_COUNT, WINDOW_TICKS,
    UNDERRUN_GAP_TICKS, PATIENT_TICKS, IMPATIENT_TICKS, SETTLE_TICKS, SILENCE_PEAK, STALL_TICKS, LEAD_FRAMES,
    RECOVERY_TICKS, HICCUP_FRAMES, MAX_STALL_FRAMES, CATCH_UP_FRAMES, STALE_FRAMES, LATE_TICKS, BLAMED_TICKS,
    CONSTANTS
};
extern long long constants[CONSTANTS];

/* _messages.c */
void fill_tables(void);
char *put_base64(char *out, const uint8_t *data, Py_ssize_t size);
char *put_number(char *out, unsigned long long number);
/* The audio of a media message in the usual shape, through a table of samples if there is one; NULL without an error: it
 * is in another shape. */
PyObject *read_media_message(const uint8_t *message, Py_ssize_t size, PyObject *stream_sid, PyObject *samples);
/* For each byte of `data` the two bytes that stand for it in the 512 of `table`. */
PyObject *look_up_samples(PyObject *data, PyObject *table);
int check_parts(PyObject *parts, Py_ssize_t *size);
char *put_message(char *out, PyObject *parts, const unsigned long long numbers[3], const uint8_t *audio, Py_ssize_t size);
/* The next message: the most that it may take, and itself. The length may be less than foreseen. */
Py_ssize_t media_message_room(media_messages *self, Py_ssize_t size);
char *put_media_message(media_messages *self, char *out, const uint8_t *audio, Py_ssize_t size);
/* The object behind a bound `media` of this type; NULL: it is something else. */
media_messages *messages_of(PyObject *media);

int prepare_queues(void);
int prepare_stream(void);
/* _rules.c and _playout.c; each gives -1, or NULL, at an exception */
int turns_tick(turns *self, long long now, PyObject *played);
int turns_hear_more(turns *self, PyObject *frame);
int playout_push(playout *self, PyObject *audio);
PyObject *playout_tick(playout *self);
void playout_note_stall(playout *self, long long frames);
int put_last(PyObject *deque, PyObject *item);
PyObject *take_first(PyObject *deque);

/* _calls.c and _leg.c */
int session_caller_audio(session *self, PyObject *payload);
/* So many frames have come in one read: how many of them, the oldest, are too old to be passed on; -1: an exception. */
Py_ssize_t session_caller_backlog(session *self, Py_ssize_t frames);
#define FRAME_ROOM 1024 /* of an AudioSocket frame of ours: 963 bytes at 24 kHz */
#define LATE_FRAMES 4 /* that a tick may give */
#define LATE_ROOM (LATE_FRAMES * FRAME_ROOM)
/* One tick. What is played is the object that is returned, or lies in `out` (LATE_ROOM) when `*size` is over 0. NULL and
 * a size of 0: an exception. */
PyObject *session_tick(session *self, long long missed, uint8_t *out, Py_ssize_t *size);
PyObject *refer_tick(enum reference which, PyObject *self, long long missed);
#define USUAL_TEXT 131072 /* bytes: of base64 less than 100,000 bytes of audio */
/* A text message of the application: 1 when it was a usual one and has been taken, 0 when it was not. */
int session_usual_text(session *self, const uint8_t *message, Py_ssize_t size);
/* The session behind a bound `app_text` of its type; NULL: it is something else. */
session *session_of(PyObject *app_text);
/* What one read has given: `data`, or `object` (or NULL) with the same in it. */
int leg_read(leg *self, const uint8_t *data, Py_ssize_t size, PyObject *object);
int leg_tick(leg *self, long long missed);
/* The leg behind a bound `_tick` of its type; NULL: it is something else. */
leg *leg_of(PyObject *tick);

/* _stream.c */
int gate_read(gate *self, const uint8_t *data, Py_ssize_t size, PyObject *object); /* as `leg_read` */
/* The gate behind a bound `send` of its type, where it may write to the socket; NULL: it has to be called. */
gate *gate_of(PyObject *send);
/* Sends a text message that is written to `room` by the caller, GATE_HEADER bytes behind its start. */
#define GATE_HEADER 14
int gate_send(gate *self, uint8_t *room, Py_ssize_t size);
/* From here to `gate_over` what goes through a gate is gathered, and `gate_let_go` sends what there is. Whatever may send
 * in another way meanwhile has to call that first. -1: an exception. */
void gate_gather(void);
int gate_let_go(void);
int gate_over(void);
