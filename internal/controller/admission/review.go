package admission

import (
	"context"
	"encoding/json"
	"errors"
	"mime"
	"net/http"

	admissionv1 "k8s.io/api/admission/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Decide answers one request of an API server. It must be quick: somebody waits.
type Decide func(ctx context.Context, request *admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse

// Review makes a webhook of a decision: it reads AdmissionReviews of admission.k8s.io/v1
// and answers them. What is no review is answered with an HTTP error, which the API
// server takes for a failure of the webhook.
func Review(decide Decide) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || kind != "application/json" {
			http.Error(w, "want application/json", http.StatusUnsupportedMediaType)
			return
		}
		var review admissionv1.AdmissionReview
		if err := json.NewDecoder(r.Body).Decode(&review); err != nil {
			code := http.StatusBadRequest
			if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
				code = http.StatusRequestEntityTooLarge
			}
			http.Error(w, "cannot read the AdmissionReview", code)
			return
		}
		if review.APIVersion != admissionv1.SchemeGroupVersion.String() || review.Kind != "AdmissionReview" || review.Request == nil {
			http.Error(w, "want an AdmissionReview of "+admissionv1.SchemeGroupVersion.String()+" with a request", http.StatusBadRequest)
			return
		}
		response := decide(r.Context(), review.Request)
		response.UID = review.Request.UID
		body, err := json.Marshal(admissionv1.AdmissionReview{
			TypeMeta: metav1.TypeMeta{APIVersion: review.APIVersion, Kind: review.Kind}, Response: response})
		if err != nil {
			http.Error(w, "cannot write the AdmissionReview", http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(body) // nobody is left to be told
	})
}
