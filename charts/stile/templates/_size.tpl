{{- /* The store's cap and a quarter more, for what is being written and for proofs. */}}
{{- define "stile.volumeSize" -}}
{{- $number := regexFind "^[0-9]+" .Values.store.maxSize }}
{{- $unit := regexFind "[A-Za-z]*$" .Values.store.maxSize }}
{{- $down := dict "" "" "k" "" "Ki" "" "M" "k" "Mi" "Ki" "G" "M" "Gi" "Mi" "T" "G" "Ti" "Gi" }}
{{- $factor := ternary 1024 1000 (hasSuffix "i" $unit) }}
{{- if eq $unit "" }}{{ add (mul (int64 $number) 1) (div (int64 $number) 4) }}
{{- else }}{{ div (mul (int64 $number) $factor 5) 4 }}{{ get $down $unit }}{{ end }}
{{- end }}
