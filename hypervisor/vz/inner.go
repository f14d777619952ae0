package vz

import (
	"fmt"
	"reflect"
)

// inner returns a field that a struct of another module keeps to itself. vz
// v3.7.1's connection has no way to end one direction of a stream, which Carrel's
// calls do to say that input is over, but the connection within it has.
// TestInnerOfModule finds the field in the module's source.
func inner[T any](of any, field string) (T, error) {
	var zero T
	v := reflect.ValueOf(of)
	if v.Kind() != reflect.Pointer || v.IsNil() || v.Elem().Kind() != reflect.Struct {
		return zero, fmt.Errorf("%T is no struct", of)
	}
	f := v.Elem().FieldByName(field)
	if !f.IsValid() || f.Type() != reflect.TypeFor[T]() {
		return zero, fmt.Errorf("%T has no field %s of type %v", of, field, reflect.TypeFor[T]())
	}
	return *(*T)(f.Addr().UnsafePointer()), nil
}
