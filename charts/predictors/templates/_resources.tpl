{{/* Requests and limits. */}}

{{/* Requests and limits with every quantity as a string: a CRD takes whole numbers and strings alone, and 2.5 is neither. */}}
{{- define "predictors.quantities" -}}
{{- $resources := deepCopy . -}}
{{- range $side, $of := pick $resources "requests" "limits" -}}
  {{- range $key, $amount := $of }}{{ $_ := set $of $key (include "predictors.plain" $amount) }}{{ end -}}
  {{- if not $of }}{{ $_ := unset $resources $side }}{{ end -}}
{{- end -}}
{{ toYaml $resources }}
{{- end }}

{{/* A quantity as a number: 1500m is 1.5, 2Gi is 2147483648. */}}
{{- define "predictors.amount" -}}
{{- $text := include "predictors.plain" . -}}
{{- $unit := regexFind `[a-zA-Z]*$` $text -}}
{{- $units := dict "n" 1e-9 "u" 1e-6 "m" 1e-3 "" 1.0 "k" 1e3 "M" 1e6 "G" 1e9 "T" 1e12 "P" 1e15 "E" 1e18 "Ki" 1024.0 "Mi" 1048576.0 "Gi" 1073741824.0 "Ti" 1099511627776.0 "Pi" 1125899906842624.0 "Ei" 1152921504606846976.0 -}}
{{ mulf (trimSuffix $unit $text | float64) (get $units $unit) }}
{{- end }}

{{/* Refuses requests above limits, which the API server would say only when the pods are made: (list path resources) */}}
{{- define "predictors.refuse.amounts" -}}
{{- $at := first . -}}{{- $resources := default dict (last .) -}}
{{- $limits := get $resources "limits" | default dict -}}
{{- range $key, $request := get $resources "requests" | default dict -}}
{{- $limit := get $limits $key -}}
{{- if and (hasKey $limits $key) (gt (include "predictors.amount" $request | float64) (include "predictors.amount" $limit | float64)) -}}
{{- $asked := include "predictors.plain" $request -}}{{- $most := include "predictors.plain" $limit -}}
{{- include "predictors.fail" (printf "%s.requests.%s is %s and more than %s.limits.%s, %s, which no pod may: say both (values that are left out are those of defaults), or null for none" $at $key $asked $at $key $most) -}}
{{- end -}}
{{- end -}}
{{- end }}

{{/* Refuses cards among a model's resources: `gpu` has them, with tolerations, RuntimeClass and what a rollout needs: (list path model) */}}
{{- define "predictors.refuse.cards" -}}
{{- $at := first . -}}{{- $m := last . -}}{{- $count := int $m.gpu.count -}}
{{- range $side := list "requests" "limits" -}}
{{- range $key, $amount := get (default dict $m.resources) $side | default dict -}}
{{- $isCard := or (eq $key $m.gpu.resource) (regexMatch `^(nvidia\.com/(gpu|mig-)|amd\.com/gpu|gpu\.intel\.com/|habana\.ai/gaudi|aws\.amazon\.com/neuron|google\.com/tpu)` $key) -}}
{{- if and $isCard $count -}}
{{- include "predictors.fail" (printf "%s.resources.%s has %s, and gpu.count gives %d of %s: leave it out" $at $side $key $count $m.gpu.resource) -}}
{{- else if and $isCard (ne (include "predictors.plain" $amount) "0") -}}
{{- include "predictors.fail" (printf "%s.resources.%s has %s: say gpu.count 1 and gpu.resource %s, which bring tolerations and RuntimeClass; one process drives one card" $at $side $key $key) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end }}
