package telemetry

import (
	"strings"
	"time"

	logsv1 "go.opentelemetry.io/proto/slim/otlp/collector/logs/v1"
	metricsv1 "go.opentelemetry.io/proto/slim/otlp/collector/metrics/v1"
	common "go.opentelemetry.io/proto/slim/otlp/common/v1"
	logs "go.opentelemetry.io/proto/slim/otlp/logs/v1"
	metrics "go.opentelemetry.io/proto/slim/otlp/metrics/v1"
	resource "go.opentelemetry.io/proto/slim/otlp/resource/v1"
)

// scope is who says it.
const scope = "github.com/carrel-vm/carrel"

// valid makes of s what protobuf takes for a string.
func valid(s string) string { return strings.ToValidUTF8(s, "\ufffd") }

func text(s string) *common.AnyValue {
	return &common.AnyValue{Value: &common.AnyValue_StringValue{StringValue: valid(s)}}
}

func attributes(list []Attr) (out []*common.KeyValue) {
	for _, a := range list {
		var v *common.AnyValue
		switch x := a.Value.(type) {
		case string:
			v = text(x)
		case int64:
			v = &common.AnyValue{Value: &common.AnyValue_IntValue{IntValue: x}}
		case bool:
			v = &common.AnyValue{Value: &common.AnyValue_BoolValue{BoolValue: x}}
		case []string:
			all := new(common.ArrayValue)
			for _, s := range x {
				all.Values = append(all.Values, text(s))
			}
			v = &common.AnyValue{Value: &common.AnyValue_ArrayValue{ArrayValue: all}}
		default:
			continue
		}
		out = append(out, &common.KeyValue{Key: valid(a.Key), Value: v})
	}
	return out
}

func encodeLogs(of []Attr, now time.Time, list []Record) *logsv1.ExportLogsServiceRequest {
	s := &logs.ScopeLogs{Scope: &common.InstrumentationScope{Name: scope}}
	for _, r := range list {
		l := &logs.LogRecord{
			TimeUnixNano: uint64(r.Time.UnixNano()), ObservedTimeUnixNano: uint64(now.UnixNano()),
			SeverityNumber: logs.SeverityNumber_SEVERITY_NUMBER_INFO, SeverityText: "INFO",
			EventName: valid(r.Name), Attributes: attributes(r.Attrs),
		}
		if r.Warn {
			l.SeverityNumber, l.SeverityText = logs.SeverityNumber_SEVERITY_NUMBER_WARN, "WARN"
		}
		if r.Body != "" {
			l.Body = text(r.Body)
		}
		s.LogRecords = append(s.LogRecords, l)
	}
	return &logsv1.ExportLogsServiceRequest{ResourceLogs: []*logs.ResourceLogs{{
		Resource: &resource.Resource{Attributes: attributes(of)}, ScopeLogs: []*logs.ScopeLogs{s},
	}}}
}

func encodeMetrics(of []Attr, start, now time.Time, list []Metric) *metricsv1.ExportMetricsServiceRequest {
	s := &metrics.ScopeMetrics{Scope: &common.InstrumentationScope{Name: scope}}
	for _, m := range list {
		var points []*metrics.NumberDataPoint
		for _, p := range m.Points {
			d := &metrics.NumberDataPoint{TimeUnixNano: uint64(now.UnixNano()), Value: &metrics.NumberDataPoint_AsInt{AsInt: p.Value}, Attributes: attributes(p.Attrs)}
			if m.Sum {
				d.StartTimeUnixNano = uint64(start.UnixNano())
			}
			points = append(points, d)
		}
		out := &metrics.Metric{Name: m.Name, Unit: m.Unit, Description: m.About}
		if m.Sum {
			out.Data = &metrics.Metric_Sum{Sum: &metrics.Sum{
				DataPoints: points, IsMonotonic: true, AggregationTemporality: metrics.AggregationTemporality_AGGREGATION_TEMPORALITY_CUMULATIVE,
			}}
		} else {
			out.Data = &metrics.Metric_Gauge{Gauge: &metrics.Gauge{DataPoints: points}}
		}
		s.Metrics = append(s.Metrics, out)
	}
	return &metricsv1.ExportMetricsServiceRequest{ResourceMetrics: []*metrics.ResourceMetrics{{
		Resource: &resource.Resource{Attributes: attributes(of)}, ScopeMetrics: []*metrics.ScopeMetrics{s},
	}}}
}
